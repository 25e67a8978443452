"""Slots given to other experts, filled and left empty: counts, loads and costs against a layer made from nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.placement import anneal
from moecast.placement.holders import Holders
from moecast.placement.priced_layer import Layer, Prices
from moecast.placement.standing import State
from moecast.placement.swaps import Tokens

from . import moves


def layer_of(seed: int, *, experts: int, places: int, spare: int = 3, tokens: int = 40, full: bool = False) -> Layer:
    """Four ranks in two domains; each expert once, and holes."""
    rng = np.random.default_rng(seed)
    ranks, windows = 4, 2
    slots = experts + spare
    expert_V = np.concatenate([np.arange(experts), np.full(spare, -1)]).astype(np.int32)
    rank_V = (rng.permutation(slots) % ranks).astype(np.int32)
    expert_TK = np.argsort(rng.random((tokens, experts)), axis=1)[:, :3].astype(np.int16)
    expert_TK[rng.random(expert_TK.shape) < 0.1] = -1
    place_G = np.array([0, 0, 1, 1]) if places == 2 else np.zeros(4)
    source_T = rng.integers(0, ranks, tokens)
    place_T = place_G[source_T].astype(np.int32)
    turn_TK, window_T = rng.integers(0, 9, expert_TK.shape).astype(np.int32), rng.integers(0, windows, tokens)
    tokens_asked = Tokens.of(expert_TK, window_T, experts, place_T=place_T, turn_TK=turn_TK)
    load_EQW = rng.random((experts, places, windows))
    holders = Holders.of(expert_V, place_G.astype(np.int32), load_EQW, rng.random(windows) / 5)
    state = State.of(
        rank_V,
        expert_V,
        domain_G=np.array([0, 0, 1, 1], np.int32),
        experts=experts,
        scenario_W=np.zeros(windows, np.int32),
        pinned=places == 2,
        replicas=(slots if full else experts, slots),
        seed=seed,
    )
    prices = Prices(np.zeros((slots, windows)), *(rng.random((4, windows)) / tokens))
    return Layer.of(tokens_asked, prices, state, holders)


def anew(layer: Layer) -> Layer:
    """The same layer counted from nothing, as its items stand now."""
    state, old = layer.state, layer.holders
    holders = Holders.of(state.expert_V, old.place_G, old.load_EQW, old.held_s_W)
    fresh = State.of(
        state.rank_V.copy(),
        state.expert_V.copy(),
        domain_G=state.domain_G,
        experts=len(state.holds_EG),
        scenario_W=state.scenario_W,
    )
    tokens = layer.tokens._replace(item_TK=layer.tokens.item_TK.copy())
    prices = layer.prices._replace(load_VW=np.zeros_like(layer.prices.load_VW))
    return Layer.of(tokens, prices, fresh, holders)


def check_same(layer: Layer) -> None:
    fresh = anew(layer)
    for part in ("ranks", "domains", "served", "tokens", "holders"):
        for kept, made in zip(getattr(layer, part), getattr(fresh, part), strict=True):
            np.testing.assert_array_equal(kept, made)
    np.testing.assert_allclose(layer.prices.load_VW, fresh.prices.load_VW, rtol=1e-12)
    assert layer.state.total[0] == pytest.approx(fresh.state.total[0], rel=1e-12)
    held = layer.state.expert_V >= 0
    pairs = set(zip(layer.state.expert_V[held].tolist(), layer.state.rank_V[held].tolist(), strict=True))
    assert len(pairs) == held.sum() == layer.state.spare[3]  # no rank holds an expert twice
    assert set(layer.state.expert_V[held].tolist()) == set(range(len(layer.state.holds_EG)))


layers = st.builds(layer_of, st.integers(0, 9999), experts=st.integers(4, 7), places=st.sampled_from([1, 2]))


@settings(max_examples=40, deadline=None)
@given(layer=layers, seed=st.integers(0, 9999))
def test_foretold_costs_are_those_counted_from_nothing(layer: Layer, seed: int) -> None:
    """Conversions and swaps in turn; one that is only foretold leaves no trace."""
    state, rng = layer.state, np.random.default_rng(seed)
    done = 0
    for _ in range(60):
        v, expert = int(rng.integers(len(state.rank_V))), int(rng.integers(-1, len(state.holds_EG)))
        if moves.convertible(layer, v, expert):
            before, foretold = float(state.total[0]), moves.conversion_gain(layer, v, expert)
            if rng.random() < 0.3:
                check_same(layer)
                continue
            moves.convert(layer, v, expert)
            check_same(layer)
            assert state.total[0] - before == pytest.approx(foretold, abs=1e-12)
            done += 1
        a, b = (int(one) for one in rng.integers(0, len(state.rank_V), 2))
        if moves.allowed(layer, a, b):
            before, foretold = float(state.total[0]), moves.gain(layer, a, b)
            moves.apply(layer, a, b)
            check_same(layer)
            assert state.total[0] - before == pytest.approx(foretold, abs=1e-12)
    assert done


@settings(max_examples=25, deadline=None)
@given(layer=layers)
def test_annealing_keeps_the_best_state_with_its_experts(layer: Layer) -> None:
    anneal.anneal(layer, 600, float(layer.state.total[0]) / 10, float(layer.state.total[0]) / 1000)
    check_same(layer)
    best = State.of(
        layer.state.best_rank_V.copy(),
        layer.state.best_expert_V.copy(),
        domain_G=layer.state.domain_G,
        experts=len(layer.state.holds_EG),
        scenario_W=layer.state.scenario_W,
    )
    # Items do not all stand where the best state has them: so serve, share and settle it afresh.
    assert anew(layer._replace(state=best)).state.total[0] == pytest.approx(layer.state.total[1], rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_annealing_finds_the_least_of_all_plans_with_replicas(seed: int) -> None:
    """Four experts, six slots on four ranks: against every way to fill them."""
    layer = layer_of(seed, experts=4, places=1, spare=2, tokens=30)
    least = min(every_cost(layer))
    for _ in range(4):
        anneal.anneal(layer, 20_000, least / 10, least / 1000)
    # which of two replicas comes first depends on their items, so that a state of the same slots may cost a little more
    assert layer.state.total[1] <= least * 1.01


def every_cost(layer: Layer) -> Iterator[float]:
    """The cost of every legal way to give the slots to experts."""
    state, experts = layer.state, len(layer.state.holds_EG)
    for expert_V in itertools.product(range(-1, experts), repeat=len(state.rank_V)):
        held = [(e, int(g)) for e, g in zip(expert_V, state.rank_V, strict=True) if e >= 0]
        if len(set(held)) < len(held) or len({e for e, _ in held}) < experts:
            continue
        other = State.of(
            state.rank_V.copy(),
            np.array(expert_V, np.int32),
            domain_G=state.domain_G,
            experts=experts,
            scenario_W=state.scenario_W,
        )
        yield float(anew(layer._replace(state=other)).state.total[0])


def test_a_full_plan_stays_full() -> None:
    layer = layer_of(1, experts=6, places=1, spare=0)
    assert layer.state.spare[0] == 0
    half = layer_of(1, experts=6, places=1, spare=4)
    half.state.spare[1:3] = 6, 8
    anneal.anneal(half, 2000, float(half.state.total[0]), float(half.state.total[0]) / 10)
    assert 6 <= half.state.spare[3] <= 8
