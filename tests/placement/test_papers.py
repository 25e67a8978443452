"""The papers' integer programs against all placements of small cases, and what they say when they are stopped."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.placement import Budget, Limit, Objective, find_solver, place
from moecast.placement.exflow import fewest_crossings
from moecast.placement.layer_sweeps import set_in_turns
from moecast.placement.moetuner import bandwidths, tune
from moecast.placement.moetuner_programs import assign_all, assign_next, cluster_experts, total_slowest, unevenness
from moecast.placement.transitions import count_transitions, crossing_share
from moecast.sim import Plan, Workload, load_model
from moecast.topology import load_cluster
from moecast.traces import crossings, read_trace, shipped_trace_path

from .test_exact import problem_of
from .test_invariants import skewed_trace, small_model


def even_ranks(experts: int, ranks: int) -> list[tuple[int, ...]]:
    """All ways to stand experts on ranks, equally many on each."""
    return [
        where
        for where in itertools.product(range(ranks), repeat=experts)
        if (np.bincount(where, minlength=ranks) == experts // ranks).all()
    ]


def pairs_of(seed: int, layers: int, experts: int) -> np.ndarray:
    """Counts with a few strong ways, and zeros."""
    rng = np.random.default_rng(seed)
    return (rng.pareto(1.0, (layers - 1, experts, experts)) * 3).astype(np.int64)


def test_transitions_are_the_pairs_that_crossings_counts() -> None:
    problem = problem_of(1, experts=6, ep=2, mode="per_rank", tokens=16, layers=3)
    pairs_LEE = count_transitions(problem)
    rows = problem.windows.row_T
    assert pairs_LEE.sum() == len(rows) * 2 * 2 * 2
    chosen_TLK = problem.trace.experts_TLK[rows]
    assert pairs_LEE[0, 2, 5] == ((chosen_TLK[:, 0] == 2).any(1) & (chosen_TLK[:, 1] == 5).any(1)).sum()
    rank_LE = np.random.default_rng(0).integers(0, 2, (3, 6)).astype(np.int32)
    made = skewed_trace(1, layers=3, experts=6, choices=2, tokens=16 * 4, phase="prefill")
    whole = problem_of(1, experts=6, ep=2, mode="per_rank", tokens=16, layers=3)
    assert len(np.unique(whole.windows.row_T)) == len(made.experts_TLK)  # all of the trace, each as often
    assert crossing_share(pairs_LEE, rank_LE) == pytest.approx(crossings(made, rank_LE), abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 9999), shape=st.sampled_from([(2, 4, 2), (3, 4, 2), (2, 6, 3), (3, 4, 4)]))
def test_exflow_proves_the_fewest_crossings(seed: int, shape: tuple[int, int, int]) -> None:
    layers, experts, ranks = shape
    pairs_LEE = pairs_of(seed, layers, experts)
    total = max(int(pairs_LEE.sum()), 1)
    best = dict.fromkeys(even_ranks(experts, ranks), 0)  # dynamic program over layers
    for pairs_EE in pairs_LEE:
        best = {
            there: max(
                kept + int(pairs_EE[np.array(here)[:, None] == np.array(there)].sum()) for here, kept in best.items()
            )
            for there in best
        }
    least = 1 - max(best.values()) / total if pairs_LEE.sum() else 0.0
    for strong in (False, True):
        found = fewest_crossings(pairs_LEE, ranks, Budget(), strong=strong)
        assert found.proved
        assert found.share == pytest.approx(least, abs=1e-9)
        assert (np.apply_along_axis(np.bincount, 1, found.part_LE, minlength=ranks) == experts // ranks).all()


def test_strengthened_it_proves_what_the_published_program_does_not() -> None:
    """4 layers of 8 experts on 4 ranks, with the same amount of deterministic work."""
    pairs_LEE = pairs_of(0, 4, 8)
    limit = Limit(work=1_000_000)
    strong = fewest_crossings(pairs_LEE, 4, Budget(limit), strong=True)
    published = fewest_crossings(pairs_LEE, 4, Budget(limit), strong=False)
    assert strong.proved
    assert not published.proved
    assert published.bound < strong.bound
    assert published.share >= strong.share


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9999), shape=st.sampled_from([(2, 6, 2), (4, 8, 4), (5, 9, 3)]))
def test_layers_in_turns_never_lose_and_keep_the_counts(seed: int, shape: tuple[int, int, int]) -> None:
    layers, experts, ranks = shape
    pairs_LEE = pairs_of(seed, layers, experts)
    start_LE = np.random.default_rng(seed).permuted(np.tile(np.arange(experts) % ranks, (layers, 1)), axis=1)
    found_LE = set_in_turns(pairs_LEE, start_LE.astype(np.int32), ranks)
    assert crossing_share(pairs_LEE, found_LE) <= crossing_share(pairs_LEE, start_LE)
    np.testing.assert_array_equal(np.sort(found_LE, axis=1), np.sort(start_LE, axis=1))


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 9999), most=st.integers(2, 4))
def test_clusters_are_as_even_as_any(seed: int, most: int) -> None:
    load_E = np.random.default_rng(seed).integers(0, 200, 6)
    cluster_E, proved = cluster_experts(load_E, 3, most, Budget())
    held_C = np.bincount(cluster_E, minlength=3)
    assert proved
    assert held_C.min() >= 1
    assert held_C.max() <= most
    least = min(
        unevenness(load_E, np.array(where), 3)
        for where in itertools.product(range(3), repeat=6)
        if all(1 <= where.count(c) <= most for c in range(3))
    )
    assert unevenness(load_E, cluster_E, 3) <= max(least * 1.025, least + 0.005 * load_E.sum()) + 1e-6


def least_slowest(flow_LCC: np.ndarray, bandwidth_GG: np.ndarray) -> float:
    """The least sum over transitions of the slowest pair, over all assignments."""
    layers, ranks = len(flow_LCC) + 1, len(bandwidth_GG)
    orders = [np.array(order) for order in itertools.permutations(range(ranks))]
    return min(
        total_slowest(flow_LCC, np.stack(chosen), bandwidth_GG) for chosen in itertools.product(orders, repeat=layers)
    )


@pytest.mark.parametrize("seed", range(3))
def test_ranks_of_clusters_are_as_good_as_any(seed: int) -> None:
    """With links alike one layer after another is enough; with a slower link between halves all layers at once."""
    rng = np.random.default_rng(seed)
    flow_LCC = rng.pareto(1.0, (2, 3, 3)) * 100
    alike_GG = np.full((3, 3), 5.0)
    rank_LC = np.tile(np.arange(3), (3, 1))
    for layer in range(2):
        rank_LC[layer + 1], proved = assign_next(flow_LCC[layer][np.argsort(rank_LC[layer])], alike_GG, Budget())
        assert proved
    assert total_slowest(flow_LCC, rank_LC, alike_GG) <= least_slowest(flow_LCC, alike_GG) * 1.026
    slow_GG = np.array([[9.0, 9, 1], [9, 9, 1], [1, 1, 9]])
    found_LC, proved = assign_all(flow_LCC, rank_LC, slow_GG, Budget())
    assert proved
    assert total_slowest(flow_LCC, found_LC, slow_GG) <= least_slowest(flow_LCC, slow_GG) * 1.026


def test_moetuner_evens_a_skewed_layer_out() -> None:
    """Two hot experts that stand together in order are set apart, and tokens that go on stay."""
    load_LE = np.array([[32, 32, 1, 1, 1, 1, 1, 1]] * 2)
    pairs_LEE = np.zeros((1, 8, 8), np.int64)
    pairs_LEE[0, 0, 1] = pairs_LEE[0, 1, 0] = 30
    rank_LE, note = tune(load_LE, pairs_LEE, slots=2, bandwidth_GG=np.ones((4, 4)), budget=Budget())
    assert rank_LE[0, 0] != rank_LE[0, 1]
    assert (rank_LE[0, 0], rank_LE[0, 1]) == (rank_LE[1, 1], rank_LE[1, 0])
    assert "ranks proved for 1 of 1 transitions" in note


def test_bandwidths_are_those_of_links() -> None:
    problem = problem_of(1, experts=6, ep=2, mode="per_rank")  # ranks in two nodes
    found_GG = bandwidths(problem.cluster, problem.wanted.gpu_of_rank)
    assert np.isinf(np.diag(found_GG)).all()
    nic = min(link.capacity_Bps for link in problem.cluster.links if link.capacity_Bps > 0)
    assert found_GG[0, 1] == found_GG[1, 0] == pytest.approx(nic)


CASES: Any = [("moetuner", {}), ("exflow", {}), ("exflow-strong", {})]


@pytest.mark.parametrize(("solver", "more"), CASES)
def test_limits_are_kept_and_plans_are_legal(solver: str, more: dict[str, Any]) -> None:
    """On 16 experts and 8 ranks in two domains, by work twice the same plan, by time a legal one."""
    shipped = read_trace(shipped_trace_path())
    cluster, model = load_cluster("dgx-h100", nodes=2, fabric="single-switch"), load_model("olmoe-1b-7b")
    model = model.with_routing("half", layers=8, experts=64, choices=6)
    asked = {"solver": solver, "ep": 8, "slots_per_rank": 8, **more}
    workload = Workload(phase="prefill", tokens_per_rank=32, steps=1)
    found = place(cluster, model, shipped, workload, time_limit_s=3.0, **asked)
    found.plan.check_legal()
    assert found.wasted_slots == 0


def test_a_work_limit_gives_the_same_plan() -> None:
    problem = problem_of(3, experts=12, ep=4, mode="per_rank", tokens=16, layers=2)
    for solver, _ in CASES:
        one, two = (find_solver(solver).solve(problem, Objective(problem), Budget(Limit(work=3_000))) for _ in range(2))
        np.testing.assert_array_equal(one.slots_LGP, two.slots_LGP)
        assert one.note == two.note
        problem.plan(one.slots_LGP).check_legal()


def test_what_they_do_not_take_is_said() -> None:
    problem = problem_of(1, experts=6, ep=2, mode="per_rank")
    layout = Plan.contiguous(layers=1, experts=5, choices=2, ep=2, slots_per_rank=3)

    trace = skewed_trace(1, layers=1, experts=5, choices=2, tokens=64, phase="prefill")
    uneven = dataclasses.replace(problem, model=small_model(1, 5, 2), trace=trace, wanted=layout)
    assert find_solver("exflow").supports(uneven) == "2 ranks do not divide 5 experts"
    assert find_solver("moetuner").supports(uneven) is None
