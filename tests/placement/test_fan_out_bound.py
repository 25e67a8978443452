"""The least fan-out, proved: against every partition of small layers, and as a bound wherever it is stopped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.placement.certificates import fan_out_bound
from moecast.placement.certificates.pricing import cheapest_set
from moecast.placement.certificates.semidefinite import semidefinite_copies
from moecast.placement.certificates.tokens import LayerTokens
from moecast.traces import NO_CHOICE


def skewed_choices(seed: int, *, tokens: int, experts: int, choices: int) -> np.ndarray:
    """Choices [T, K] of experts that are unevenly wanted, and together more or less often; some are none."""
    rng = np.random.default_rng(seed)
    topic_T = rng.integers(0, 3, tokens)
    weight_ZE = rng.dirichlet(np.full(experts, 0.7), 3) + 1e-6
    drawn = [rng.choice(experts, choices, replace=False, p=weight_ZE[z] / weight_ZE[z].sum()) for z in topic_T]
    return np.where(rng.random((tokens, choices)) < 0.1, NO_CHOICE, np.array(drawn).reshape(tokens, choices)).astype(
        np.uint16
    )


def every_partition(size_G: list[int], experts: list[int]) -> Iterator[list[tuple[int, ...]]]:
    if not size_G:
        yield []
        return
    for first in itertools.combinations(experts, size_G[0]):
        rest = [expert for expert in experts if expert not in first]
        for others in every_partition(size_G[1:], rest):
            yield [first, *others]


def least_copies(chosen_TK: np.ndarray, size_G: list[int], experts: int, most_load: float = np.inf) -> float:
    """By trying all partitions, from the choices themselves."""
    rows = [{int(e) for e in row if e != NO_CHOICE} for row in chosen_TK]
    sets = {s for size in set(size_G) for s in itertools.combinations(range(experts), size)}
    cost = {s: sum(bool(row & set(s)) for row in rows) for s in sets}
    load = {s: sum(len(row & set(s)) for row in rows) for s in sets}
    limit = np.inf if most_load == np.inf else most_load * sum(len(row) for row in rows) / len(size_G)
    fits = [p for p in every_partition(size_G, list(range(experts))) if max(load[s] for s in p) <= limit]
    return min((sum(cost[s] for s in p) for p in fits), default=np.inf)


SIZES = ([2, 2, 2], [3, 3], [4, 3], [2, 2, 2, 2], [4, 4], [1, 2, 3], [5, 3])


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 9999), size_G=st.sampled_from(SIZES), tokens=st.integers(0, 40), choices=st.integers(1, 4),
    nodes=st.sampled_from([0, 3, 10**9]), most_load=st.sampled_from([None, 1.0, 1.1, 1.4]),
)  # fmt: skip
def test_no_partition_is_below_the_bound(seed, size_G, tokens, choices, nodes, most_load):
    """Against all partitions, stopped early or not, with a limit to loads or without."""
    experts = sum(size_G)
    chosen_TK = skewed_choices(seed, tokens=tokens, experts=experts, choices=choices)
    found = fan_out_bound(chosen_TK, experts, size_G, most_load=most_load, most_nodes=nodes)
    least = least_copies(chosen_TK, size_G, experts, most_load or np.inf)
    assert found.copies <= least
    assert found.plan_copies >= least
    if np.isfinite(found.plan_copies):
        assert LayerTokens.of(chosen_TK, experts).fan_out(found.rank_E) == found.plan_copies
    if nodes > 10 and most_load is None and tokens > 10:
        assert found.proved
        assert found.copies >= 0.8 * least


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 9999), size=st.integers(1, 5), nodes=st.sampled_from([0, 1, 5, 20, 10**9]), capped=st.booleans()
)
def test_the_cheapest_set_is_found_or_bounded(seed, size, nodes, capped):
    rng, experts = np.random.default_rng(seed), 9
    tokens = LayerTokens.of(skewed_choices(seed, tokens=60, experts=experts, choices=4), experts)
    price_E = tokens.load_E * rng.uniform(0.2, 1.0, experts)
    limit = float(tokens.load_E.sum() * size / experts) if capped else 1e300
    cost = {}
    for each in itertools.combinations(range(experts), size):
        if tokens.load_E[list(each)].sum() <= limit:
            held_T = np.isin(tokens.expert_TK, each).any(axis=1)
            cost[each] = held_T.sum() - price_E[list(each)].sum()
    least = min(cost.values(), default=np.inf)
    found = cheapest_set(tokens, price_E, size, below=1e6, most_load=limit, most_nodes=nodes)
    assert found.least <= least + 1e-9
    if nodes > 1000:
        assert found.least == pytest.approx(min(least, 1e6))
        assert not cost or cost[tuple(found.experts_NP[-1])] == pytest.approx(least)


def test_the_bound_is_tight_where_experts_come_in_teams():
    """Four teams that are always chosen together: one copy each, and the proof says so."""
    teams = np.arange(16).reshape(4, 4)
    chosen_TK = np.random.default_rng(0).permuted(np.repeat(teams, 25, axis=0), axis=1)
    found = fan_out_bound(chosen_TK, 16, [4] * 4)
    assert found.copies == pytest.approx(100, abs=1e-4)
    assert found.plan_copies == 100


def test_the_same_seed_and_work_give_the_same_bound():
    chosen_TK = skewed_choices(3, tokens=300, experts=16, choices=4)
    first, again = (fan_out_bound(chosen_TK, 16, [4] * 4, seed=5, most_nodes=200) for _ in range(2))
    assert (first.copies, first.plan_copies, first.nodes) == (again.copies, again.plan_copies, again.nodes)
    assert fan_out_bound(chosen_TK, 16, [4] * 4, time_limit_s=0.0).copies <= first.plan_copies


@pytest.mark.parametrize(
    ("size_G", "most_load", "said"),
    [
        ([4, 3], None, "size_G"),
        ([0, 8], None, "size_G"),
        ([4, 4], 0.9, "most_load"),
        ([4, 4], float("nan"), "most_load"),
    ],
)
def test_questions_without_an_answer_are_refused(size_G, most_load, said):
    chosen_TK = skewed_choices(0, tokens=8, experts=8, choices=2)
    with pytest.raises((MoecastError, ValueError), match=said):
        fan_out_bound(chosen_TK, 8, size_G, most_load=most_load)


@pytest.mark.parametrize("hostile", [[[0, 8]], [[3, 3]], [[0.5, 1.0]], [0, 1], [[-1, 2]], [[70000, 1]]])
def test_choices_that_are_no_experts_are_refused(hostile):
    with pytest.raises((TypeError, ValueError), match="experts_TK"):
        fan_out_bound(np.array(hostile), 8, [4, 4])


def least_remote(chosen_TK: np.ndarray, sets: int, experts: int, home_T: np.ndarray | None) -> int:
    """Copies into sets that are not a token's home, at the least, by trying all placements on labelled sets."""
    rows = [{int(e) for e in row if e >= 0} for row in chosen_TK]
    best = np.inf
    for parts in every_partition([experts // sets] * sets, list(range(experts))):
        met = [{s for s, part in enumerate(parts) if row & set(part)} for row in rows]
        own = [set() if home_T is None else {int(home)} for home in (range(len(rows)) if home_T is None else home_T)]
        best = min(best, sum(len(there - here) for there, here in zip(met, own, strict=True)))
    return int(best)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 9999), shape=st.sampled_from([(4, 2), (6, 2), (6, 3), (8, 2), (4, 4), (5, 1)]),
    tokens=st.integers(0, 30), choices=st.integers(1, 4), homes=st.booleans(), rounds=st.sampled_from([0, 10, 60]),
)  # fmt: skip
def test_no_placement_is_below_the_semidefinite_bound(seed, shape, tokens, choices, homes, rounds):
    """However early it stops, with homes and without."""
    experts, sets = shape
    chosen_TK = skewed_choices(seed, tokens=tokens, experts=experts, choices=choices).astype(np.int64)
    chosen_TK[chosen_TK == NO_CHOICE] = -1
    home_T = np.random.default_rng(seed).integers(0, sets, tokens) if homes else None
    found = semidefinite_copies(chosen_TK, experts, sets, home_T=home_T, iterations=rounds)
    assert 0 <= found <= least_remote(chosen_TK, sets, experts, home_T)


def test_sets_too_large_to_be_looked_at_have_a_bound_that_says_something():
    """Two domains of sixteen experts, half of which are chosen together."""
    rng = np.random.default_rng(0)
    of_T = rng.integers(0, 2, 400)
    chosen_TK = np.array([rng.permutation(16)[:4] + 16 * part for part in of_T])
    chosen_TK[:40, 0] = (chosen_TK[:40, 0] + 16) % 32  # a tenth of the tokens need both
    found = fan_out_bound(chosen_TK, 32, [16, 16])
    assert found.plan_copies == 440
    assert 420 < found.copies <= 440
    home_T = rng.integers(0, 2, 400)
    of_plan = sum(len(set((row // 16).tolist()) - {home}) for row, home in zip(chosen_TK, home_T.tolist(), strict=True))
    assert 0.7 * of_plan < semidefinite_copies(chosen_TK, 32, 2, home_T=home_T) <= of_plan


def test_experts_that_do_not_stand_evenly_have_no_semidefinite_bound():
    with pytest.raises(ValueError, match="sets"):
        semidefinite_copies(np.zeros((1, 1), np.int64), 7, 2)
