"""The search's counts, prices and items against counting from nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.placement import Budget, Limit, Objective, PlacementProblem, find_solver, place, swaps
from moecast.placement.cost import LayerCost
from moecast.placement.layer_search import LayerSearch
from moecast.placement.replicas import HOLE, longest_first, replica_counts, slots_of
from moecast.sim import Plan, Workload, kernels_on
from moecast.sim.sites import Sites
from moecast.sim.traffic import count_traffic

from . import moves
from .served import served
from .test_invariants import problems, skewed_trace, small_cluster, small_model


def random_tokens(seed: int, *, items: int, choices: int, windows: int, tokens: int = 60) -> swaps.Tokens:
    """Tokens that choose distinct items, some choices empty."""
    rng = np.random.default_rng(seed)
    item_TK = np.argsort(rng.random((tokens, items)), axis=1)[:, :choices].astype(np.int16)
    item_TK[rng.random(item_TK.shape) < 0.1] = -1
    return swaps.Tokens.of(item_TK, rng.integers(0, windows, tokens).astype(np.int32), items)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999), items=st.integers(4, 12), choices=st.integers(1, 4), buckets=st.integers(2, 4),
    windows=st.integers(1, 3),
)  # fmt: skip
def test_copies_stay_exact_over_swaps(seed: int, items: int, choices: int, buckets: int, windows: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = random_tokens(seed, items=items, choices=choices, windows=windows)
    bucket_V = rng.integers(0, buckets, items).astype(np.int32)
    served = swaps.Served.of(tokens, items, windows)
    served_VI, sets = served.served_VI, swaps.Sets.of(served, bucket_V, buckets)
    for _ in range(12):
        a, b = rng.integers(0, items, 2)
        if bucket_V[a] == bucket_V[b]:
            continue
        place_a, place_b, before_WB = int(bucket_V[a]), int(bucket_V[b]), sets.copies_WB.copy()
        for w in range(windows):
            known = served_VI, sets.any_BI, sets.one_BI
            words = int(sets.first_W1[w]), int(sets.first_W1[w + 1])
            before_WB[w, place_a] += swaps.added_copies(*known, a, b, place_a, words)
            before_WB[w, place_b] += swaps.added_copies(*known, b, a, place_b, words)
        swaps.swap(served_VI, sets, bucket_V, a, b)
        np.testing.assert_array_equal(sets.copies_WB, before_WB)
        np.testing.assert_array_equal(sets.copies_WB, plain_copies(tokens, bucket_V, buckets, windows))


def plain_copies(tokens: swaps.Tokens, bucket_V: np.ndarray, buckets: int, windows: int) -> np.ndarray:
    """Tokens of each window with anything in each bucket, token by token: int64 [W, B]."""
    copies_WB = np.zeros((windows, buckets), np.int64)
    for row, w in zip(tokens.item_TK, tokens.window_T, strict=True):
        for bucket in {int(bucket_V[v]) for v in row if v >= 0}:
            copies_WB[w, bucket] += 1
    return copies_WB


@settings(max_examples=25, deadline=None)
@given(problem=problems(), seed=st.integers(0, 9999))
def test_foretold_gains_are_what_swaps_change(problem: PlacementProblem, seed: int) -> None:
    """Ranks and domains, copies and loads and weights at once."""
    cost = LayerCost(choice_s=3e-8, replica_s=1e-6, copy_s=2e-8, domain_copy_s=1e-8, mean_share=0.5)
    search = LayerSearch(problem, 0, cost=cost, replicas=int(problem.slots_G.sum()), seed=seed)
    layer = search.prepared()
    state = layer.state
    rng = np.random.default_rng(seed)
    for _ in range(10):
        a, b = rng.integers(0, len(state.rank_V), 2)
        if not moves.allowed(layer, a, b):
            continue
        before, foretold = state.total[0], moves.gain(layer, a, b)
        moves.apply(layer, a, b)
        assert state.total[0] - before == pytest.approx(foretold, abs=1e-15)
        held = state.expert_V >= 0
        pairs = set(zip(state.expert_V[held].tolist(), state.rank_V[held].tolist(), strict=True))
        assert len(pairs) == held.sum()  # no rank holds an expert twice


@pytest.mark.parametrize("rule", ["round_robin", "nearest", "by_rank"])
def test_items_are_served_as_slots_are(rule: str) -> None:
    """For items in the order of slots, the search's mapping is the simulator's."""
    trace = skewed_trace(3, layers=1, experts=8, choices=3, tokens=512, phase="prefill")
    layout = Plan.contiguous(layers=1, experts=8, choices=3, ep=4, slots_per_rank=3)
    layout = layout.with_(replica_rule=rule, gpu_of_rank=(0, 1, 8, 9))
    problem = PlacementProblem(
        cluster=small_cluster(2),
        model=small_model(1, 8, 3),
        trace=trace,
        wanted=layout,
        workload=Workload(phase="prefill", tokens_per_rank=64, steps=2),
    )
    load_E = np.bincount(trace.experts_TLK[:, 0].ravel(), minlength=8)
    replicas_E = replica_counts(load_E, slots=12, ranks=2)  # two at most: one a domain, so none is on a source's rank
    items = longest_first(load_E, replicas_E, problem.slots_G, problem.domain_G)
    plan = problem.plan(slots_of(items.rank_V, items.expert_V, ranks=4, slots=3)[None])
    step = problem.steps[0]
    windows = replace(problem.windows, rank_T=step.source_T, step_T=np.zeros(step.n_tokens, np.int32))
    item_TK = served(problem, items, trace.experts_TLK[step.token_T, 0], windows)
    traffic = count_traffic(plan, Sites.of(problem.cluster, plan), trace.experts_TLK, step.token_T, step.source_T)
    load_G = np.bincount(items.rank_V[item_TK.ravel()], minlength=4)
    if rule != "nearest":
        np.testing.assert_array_equal(load_G, traffic.rank_load_LG[0])
    else:  # the own rank comes first in the simulator only
        np.testing.assert_array_equal(load_G.reshape(2, 2).sum(1), traffic.rank_load_LG[0].reshape(2, 2).sum(1))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 9999), experts=st.integers(2, 12), ranks=st.integers(1, 5), spare=st.integers(0, 9),
    domains=st.integers(1, 2),
)  # fmt: skip
def test_longest_first_is_legal_and_wastes_nothing(
    seed: int, experts: int, ranks: int, spare: int, domains: int
) -> None:
    rng = np.random.default_rng(seed)
    load_E = rng.integers(0, 100, experts)
    slots_G = np.full(ranks, -(-experts // ranks), np.int32)
    slots_G[rng.integers(0, ranks, spare)] += 1
    total = int(slots_G.sum())
    replicas_E = replica_counts(load_E, slots=total, ranks=ranks)
    assert replicas_E.min() >= 1
    assert replicas_E.sum() <= total
    assert replicas_E.max() <= ranks
    items = longest_first(load_E, replicas_E, slots_G, (np.arange(ranks) * domains // ranks).astype(np.int32))
    assert len(items.expert_V) == total
    np.testing.assert_array_equal(np.bincount(items.rank_V, minlength=ranks), slots_G)
    held = items.expert_V != HOLE
    assert set(items.expert_V[held].tolist()) == set(range(experts))
    assert len(set(zip(items.expert_V[held].tolist(), items.rank_V[held].tolist(), strict=True))) == held.sum()


def clustered_problem() -> PlacementProblem:
    """Experts that are chosen together stand apart in contiguous plans; 8 ranks in two domains."""
    rng = np.random.default_rng(0)
    trace = skewed_trace(0, layers=3, experts=32, choices=4, tokens=4096, phase="prefill")
    circle_T = rng.integers(0, 8, 4096)
    trace.experts_TLK.setflags(write=True)
    trace.experts_TLK[:, :, :3] = (circle_T[:, None, None] + 8 * np.arange(3)).astype(np.uint16)
    trace.experts_TLK[:, :, 3] = (24 + rng.integers(0, 8, (4096, 3))).astype(np.uint16)
    layout = Plan.contiguous(layers=3, experts=32, choices=4, ep=8, slots_per_rank=5)
    return PlacementProblem(
        cluster=kernels_on(small_cluster(2), kernels="roofline"),
        model=small_model(3, 32, 4),
        trace=trace,
        workload=Workload(phase="prefill", tokens_per_rank=128, steps=2),
        wanted=layout.with_(gpu_of_rank=(0, 1, 2, 3, 8, 9, 10, 11)),
    )


def test_local_search_is_no_slower_than_the_simpler_solvers_and_repeats_itself() -> None:
    problem = clustered_problem()
    objective = Objective(problem)
    limit = Limit(work=60_000)
    slots, again = (
        find_solver("local-search").solve(problem, Objective(problem), Budget(limit), seed=1).slots_LGP
        for _ in range(2)
    )
    np.testing.assert_array_equal(slots, again)
    for name in ("contiguous", "eplb", "balance"):
        other = find_solver(name).solve(problem, objective, Budget(), seed=1).slots_LGP
        assert objective.step_s(slots) <= objective.step_s(other), name
    assert objective.step_s(slots) < 0.95 * objective.step_s(problem.any_plan().slots_DLGP[0])


def test_the_estimate_is_near_fluid() -> None:
    problem = clustered_problem()
    objective = Objective(problem)
    for name in ("contiguous", "balance"):
        slots = find_solver(name).solve(problem, objective, Budget(), seed=0).slots_LGP
        assert objective.estimate(slots).step_s == pytest.approx(objective.step_s(slots), rel=0.05)


def test_pooled_windows_hold_the_same_choices() -> None:
    windows = clustered_problem().windows
    pooled = windows.pooled()
    assert (windows.n > 1, pooled.n) == (True, 1)
    np.testing.assert_array_equal(pooled.load_LWE.sum(1), windows.load_LWE.sum(1))
    assert pooled.step_share_W.sum() == pytest.approx(1)


def test_progress_rises_to_the_end() -> None:
    trace = skewed_trace(1, layers=2, experts=8, choices=2, tokens=512, phase="prefill")
    seen: list[int] = []
    place(
        small_cluster(1),
        small_model(2, 8, 2),
        trace,
        Workload(phase="prefill", tokens_per_rank=8, steps=2),
        work_limit=2000,
        progress=lambda done, whole: seen.append(1000 * done // whole),
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1000
