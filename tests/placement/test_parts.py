"""The small parts of searches: empty slots filled, budgets, replicas given out, EPLB's packing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.placement import Budget, Limit, rebalance
from moecast.placement.eplb import replicate
from moecast.placement.fill import fill_slots
from moecast.placement.limit import check_seed
from moecast.placement.load_search import balance_layer
from moecast.placement.replicas import replica_counts


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999), experts=st.integers(1, 8), ranks=st.integers(1, 4), spare=st.integers(0, 3),
    cut=st.integers(0, 1),
)  # fmt: skip
def test_filling_touches_empty_slots_only_and_repeats_no_expert_on_a_rank(
    seed: int, experts: int, ranks: int, spare: int, cut: int
) -> None:
    rng = np.random.default_rng(seed)
    slots = -(-experts // ranks) + spare
    slots_G = np.full(ranks, slots, np.int32)
    table = np.full((2, ranks, slots), -1, np.int32)
    for layer in table:
        layer.reshape(-1)[rng.permutation(ranks * slots)[:experts]] = np.arange(experts)
    if cut and (table[:, 0, -1] == -1).all() and slots > 1:
        slots_G[0] -= 1
    load_LE = rng.integers(0, 50, (2, experts))
    filled, count = fill_slots(table, load_LE, slots_G)
    held = table != -1
    np.testing.assert_array_equal(filled[held], table[held])
    assert count == int((filled != table).sum())
    for before, layer in zip(table, filled, strict=True):
        for rank, row in enumerate(layer):
            own = row[row != -1].tolist()
            assert len(own) == len(set(own))
            assert (row[slots_G[rank] :] == before[rank, slots_G[rank] :]).all()
            assert len(own) == min(slots_G[rank], experts) or set(own) == set(range(experts))


def test_the_hottest_expert_is_the_first_to_be_repeated() -> None:
    filled, count = fill_slots(
        np.array([[[0, 1, -1], [2, 3, -1]]], np.int32), np.array([[1, 2, 9, 3]]), np.array([3, 3], np.int32)
    )
    assert (filled.tolist(), count) == ([[[0, 1, 2], [2, 3, 1]]], 2)  # 9 on the other rank, then 2 per replica


def test_a_budget_counts_work_and_never_tells_less_than_before() -> None:
    told: list[tuple[str, float]] = []
    budget = Budget(Limit(work=10), lambda what, part: told.append((what, part)))
    assert (budget.work_left(99), budget.over, budget.seconds_left) == (10, False, float("inf"))
    budget.spend(4)
    budget.tell("a", 0.4)
    budget.tell("b", 0.1)
    budget.tell("c", 7.0)
    assert (budget.work_left(99), told) == (6, [("a", 0.4), ("b", 0.4), ("c", 1.0)])
    budget.spend(7)
    assert (budget.work_left(99), budget.over) == (0, True)
    quiet = budget.quiet()
    quiet.tell("nobody hears it", 1.0)
    assert (len(told), quiet.limit) == (3, Limit())
    assert Budget().work_left(5) == 5
    assert Budget(Limit(time_s=1e-9)).over


def test_a_time_limit_moves_the_progress_along() -> None:
    told: list[float] = []
    budget = Budget(Limit(time_s=1e-6), lambda _, part: told.append(part))
    while budget.seconds_left > 0:
        pass
    budget.tell("late", 0.1)
    assert told == [1.0]
    assert budget.quiet().limit.time_s == 1e-9


@pytest.mark.parametrize("seed", [-1, True, 1.5, "1", 2**63])
def test_seeds_that_are_none(seed: object) -> None:
    with pytest.raises(MoecastError, match="seed"):
        check_seed(seed)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(load=st.lists(st.integers(0, 30), min_size=2, max_size=4), spare=st.integers(0, 4), ranks=st.integers(1, 4))
def test_replicas_make_the_heaviest_share_as_light_as_can_be(load: list[int], spare: int, ranks: int) -> None:
    """Against all ways to give the spare slots out, no expert having more replicas than there are ranks."""
    slots = len(load) + spare
    given_E = replica_counts(load, slots=slots, ranks=ranks)
    ways = itertools.product(range(1, ranks + 1), repeat=len(load))
    least = min(max(np.array(load) / way) for way in ways if sum(way) <= slots)
    assert max(load / given_E) == pytest.approx(least)
    expert_S, share_S = replicate(np.array(load, float), slots)  # EPLB's, which knows no such limit
    assert share_S.max() <= max(load / given_E) + 1e-12
    np.testing.assert_array_equal(np.bincount(expert_S, minlength=len(load)) >= 1, True)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999), groups=st.sampled_from([1, 2, 4]), nodes=st.sampled_from([1, 2]),
    per_rank=st.integers(2, 4),
)  # fmt: skip
def test_eplb_places_every_expert_and_keeps_groups_on_their_node(
    seed: int, groups: int, nodes: int, per_rank: int
) -> None:
    load_LE = np.random.default_rng(seed).integers(0, 100, (2, 8)).astype(float)
    slots_LGP = rebalance(load_LE, slots=4 * per_rank, ranks=4, expert_groups=groups, nodes=nodes)
    assert slots_LGP.shape == (2, 4, per_rank)
    for slots_GP in slots_LGP:
        assert set(slots_GP.ravel().tolist()) == set(range(8))
        if groups % nodes == 0:
            on_node = slots_GP.reshape(nodes, -1) // (8 // groups)
            assert sum(len(set(row)) for row in on_node.tolist()) == groups


@settings(max_examples=30, deadline=None)
@given(load=st.lists(st.integers(0, 60), min_size=6, max_size=6))
def test_balance_is_within_a_swap_of_the_best(load: list[int]) -> None:
    """Six experts on three ranks of two slots, against all placements; swaps find it or end one swap short."""
    load_E = np.array(load)
    slots_GP = balance_layer(load_E, np.full(3, 2, np.int32), np.zeros(3, np.int32), proposals=10_000)
    found = load_E[slots_GP].sum(1).max()
    least = min(load_E[np.array(order).reshape(3, 2)].sum(1).max() for order in itertools.permutations(range(6)))
    assert least <= found <= 4 / 3 * max(least, load_E.sum() / 3)  # longest first is never further off (Graham, 1969)
    assert sorted(slots_GP.ravel().tolist()) == list(range(6))
