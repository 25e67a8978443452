"""The annealing of one layer against the cost worked out in plain Python, and against all placements of small cases."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.placement import anneal, swaps
from moecast.placement.holders import Holders
from moecast.placement.priced_layer import Layer, Prices
from moecast.placement.standing import State

from . import moves


def small_layer(
    seed: int,
    *,
    ranks: int,
    slots: int,
    domains: int = 1,
    windows: int = 1,
    tokens: int = 40,
    holes: int = 0,
    scenarios: int = 1,
) -> Layer:
    """Items that stand anywhere, each another expert's; the last ones are holes."""
    rng = np.random.default_rng(seed)
    items = ranks * slots
    rank_V = rng.permutation(np.repeat(np.arange(ranks), slots)).astype(np.int32)
    domain_G = (np.arange(ranks) * domains // ranks).astype(np.int32)
    expert_V = np.arange(items, dtype=np.int32)
    expert_V[items - holes :] = -1
    chosen = items - holes
    item_TK = np.argsort(rng.random((tokens, chosen)), axis=1)[:, :3].astype(np.int16)
    item_TK[rng.random(item_TK.shape) < 0.2] = -1
    window_T = rng.integers(0, windows, tokens).astype(np.int32)
    load_EQW = rng.random((items, 1, windows))
    holders = Holders.of(expert_V, np.zeros(ranks, np.int32), load_EQW, np.zeros(windows))
    copies = rng.random((4, windows)) / tokens
    state = State.of(
        rank_V,
        expert_V,
        domain_G=domain_G,
        experts=items,
        scenario_W=np.arange(windows, dtype=np.int32) % scenarios,
        seed=seed,
    )
    return Layer.of(
        swaps.Tokens.of(item_TK, window_T, items), Prices(np.zeros((items, windows)), *copies), state, holders
    )


def plain_cost(layer: Layer, rank_V: Any) -> float:
    """The cost of a placement, as the head of `moecast.placement.cost` says it."""
    prices, tokens, domain_G = layer.prices, layer.tokens, layer.state.domain_G
    shared, slowest_C = 0.0, np.zeros(len(layer.state.scenario_s))
    for window in range(prices.load_VW.shape[1]):
        held = [
            {int(v) for v in row if v >= 0}
            for row, at in zip(tokens.item_TK, tokens.window_T, strict=True)
            if at == window
        ]
        copies_G = [sum(any(rank_V[v] == g for v in one) for one in held) for g in range(len(domain_G))]
        copies_N = [
            sum(any(domain_G[rank_V[v]] == n for v in one) for one in held) for n in range(int(domain_G.max()) + 1)
        ]
        seconds = [
            sum(prices.load_VW[v, window] for v in np.flatnonzero(rank_V == g))
            + prices.copy_W[window] * copies_G[g]
            + prices.domain_copy_W[window] * copies_N[domain_G[g]]
            for g in range(len(domain_G))
        ]
        shared += prices.mean_W[window] * sum(copies_G) + prices.domain_mean_W[window] * sum(copies_N)
        slowest_C[layer.state.scenario_W[window]] += max(seconds)
    return shared + float(slowest_C.max())


layers = st.builds(
    small_layer,
    st.integers(0, 9999),
    ranks=st.sampled_from([2, 4]),
    slots=st.integers(1, 3),
    domains=st.sampled_from([1, 2]),
    windows=st.integers(1, 3),
    holes=st.integers(0, 1),
    scenarios=st.integers(1, 2),
)


@settings(max_examples=30, deadline=None)
@given(layer=layers, seed=st.integers(0, 9999))
def test_the_cost_is_the_formulas_over_any_swaps(layer: Layer, seed: int) -> None:
    state, rng = layer.state, np.random.default_rng(seed)
    assert state.total[0] == pytest.approx(plain_cost(layer, state.rank_V), rel=1e-12)
    for _ in range(8):
        a, b = (int(item) for item in rng.integers(0, len(state.rank_V), 2))
        if moves.allowed(layer, a, b):
            moves.apply(layer, a, b)
            assert state.total[0] == pytest.approx(plain_cost(layer, state.rank_V), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(layer=layers, proposals=st.integers(0, 400))
def test_the_best_state_is_the_least_that_was_seen(layer: Layer, proposals: int) -> None:
    """Whatever the temperature: what is handed out costs what is said, and no more than the first or the last state."""
    state, first = layer.state, float(layer.state.total[0])
    anneal.anneal(layer, proposals, first, first / 10)
    assert state.total[1] == pytest.approx(plain_cost(layer, state.best_rank_V), rel=1e-12)
    assert state.total[1] <= min(first, state.total[0])
    np.testing.assert_array_equal(np.bincount(state.best_rank_V), np.bincount(state.rank_V))


@settings(max_examples=30, deadline=None)
@given(layer=layers)
def test_descent_ends_where_no_swap_gains(layer: Layer) -> None:
    items, before = len(layer.state.rank_V), float(layer.state.total[0])
    used = anneal.descend(layer, 10**6, 1e-9)
    assert layer.state.total[0] <= before
    assert used >= items * (items - 1) // 2
    pairs = itertools.combinations(range(items), 2)
    assert all(moves.gain(layer, a, b) >= -1e-9 for a, b in pairs if moves.allowed(layer, a, b))


def test_descent_stops_at_its_limit_with_what_it_has() -> None:
    layer = small_layer(4, ranks=4, slots=3)
    assert anneal.descend(layer, 5, 0.0) == 5
    assert layer.state.total[1] == pytest.approx(plain_cost(layer, layer.state.best_rank_V), rel=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_annealing_finds_the_least_of_all_placements(seed: int) -> None:
    """Of six experts on three ranks, and on two ranks in two domains."""
    ranks, slots, domains = ((3, 2, 1), (2, 3, 2))[seed % 2]
    layer = small_layer(seed, ranks=ranks, slots=slots, domains=domains, windows=2)
    every = {tuple(order) for order in itertools.permutations(np.repeat(np.arange(ranks), slots).tolist())}
    least = min(plain_cost(layer, np.array(order)) for order in every)
    anneal.anneal(layer, 4000, layer.state.total[0] / 10, layer.state.total[0] / 1000)
    anneal.descend(layer, 10**6, 1e-12)
    assert layer.state.total[1] == pytest.approx(least, rel=1e-9)


def test_the_same_seed_makes_the_same_proposals() -> None:
    found = []
    for seed in (7, 7, 8):
        layer = small_layer(3, ranks=4, slots=3)
        layer.state.random[0] = seed
        anneal.anneal(layer, 300, 1.0, 0.5)
        found.append(layer.state.rank_V.tolist())
    assert found[0] == found[1] != found[2]
