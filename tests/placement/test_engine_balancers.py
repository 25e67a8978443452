"""Balancers as engines run them: what is EPLB's, and where SGLang's other one differs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.placement import Budget, Objective, PlacementProblem, find_solver
from moecast.placement.eplb import replicate
from moecast.placement.sglang_vec import place_layer, replicas_by_windows
from moecast.sim import Plan, Workload

from .test_invariants import skewed_trace, small_cluster, small_model


@pytest.mark.parametrize(
    ("load_E", "slots", "replicas_E"),
    [
        ([1, 2, 3, 4], 4, [1, 1, 1, 1]),
        ([1, 4, 2, 1], 8, [1, 4, 2, 1]),
        ([10, 5, 2, 15, 8], 9, [2, 1, 1, 3, 2]),
        ([0, 10, 0], 4, [1, 2, 1]),
    ],
)
def test_tensorrt_llm_replicates_as_eplb_does(load_E: list[float], slots: int, replicas_E: list[int]) -> None:
    """The published cases of NVIDIA/TensorRT-LLM, cpp/tests/unit_tests/runtime/moeLoadBalancerTest.cpp."""
    expert_S, share_S = replicate(np.array(load_E, float), slots)
    np.testing.assert_array_equal(np.bincount(expert_S, minlength=len(load_E)), replicas_E)
    np.testing.assert_allclose(np.bincount(expert_S, share_S), load_E)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), experts=st.integers(1, 9), spare=st.integers(0, 9))
def test_with_one_window_sglangs_other_one_replicates_as_eplb(seed: int, experts: int, spare: int) -> None:
    load_E = np.random.default_rng(seed).random(experts) + 0.1
    expert_S, _ = replicate(load_E, experts + spare)
    np.testing.assert_array_equal(replicas_by_windows(load_E[None], experts + spare), np.bincount(expert_S))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), experts=st.integers(2, 7), windows=st.integers(1, 5))
def test_each_replica_lowers_the_windows_peaks_most(seed: int, experts: int, windows: int) -> None:
    load_WE = np.random.default_rng(seed).integers(1, 60, (windows, experts)).astype(float)
    before = np.ones(experts)
    for slots in range(experts + 1, experts + 5):
        after = replicas_by_windows(load_WE, slots)
        peaks = [(load_WE / (before + np.eye(experts)[e])).max(1).sum() for e in range(experts)]
        assert after.sum() == slots
        assert (load_WE / after).max(1).sum() == pytest.approx(min(peaks))
        before = after


def test_peaks_in_single_windows_count_that_a_sum_hides() -> None:
    """Experts 0 and 1 are hot by turns, 2 is always warm: the sum sees three of a kind."""
    load_WE = np.array([[90, 0, 50], [0, 90, 50]])
    np.testing.assert_array_equal(replicas_by_windows(load_WE.astype(float), 5), [2, 2, 1])
    expert_S, _ = replicate(load_WE.sum(0).astype(float), 5)
    assert np.bincount(expert_S)[2] == 2


def test_ranks_are_dealt_to_in_turns_and_groups_stay_on_nodes() -> None:
    load_WE = np.arange(8, 0, -1)[None]
    np.testing.assert_array_equal(place_layer(load_WE, slots=8, ranks=4), [[0, 7], [1, 6], [2, 5], [3, 4]])
    on_nodes = place_layer(load_WE, slots=12, ranks=4, groups=4, nodes=2)
    for node in (on_nodes[:2], on_nodes[2:]):
        assert len(set((node // 2).ravel().tolist())) == 2
    assert set(on_nodes.ravel().tolist()) == set(range(8))


def test_it_is_a_solver() -> None:
    wanted = Plan.contiguous(layers=2, experts=8, choices=2, ep=4, slots_per_rank=3)
    problem = PlacementProblem(
        cluster=small_cluster(1),
        model=small_model(2, 8, 2),
        trace=skewed_trace(1, layers=2, experts=8, choices=2, tokens=512, phase="prefill"),
        workload=Workload(phase="prefill", tokens_per_rank=32, steps=3),
        wanted=wanted,
    )
    solved = find_solver("sglang-vec").solve(problem, Objective(problem), Budget())
    problem.plan(solved.slots_LGP).check_legal()
    assert (solved.slots_LGP >= 0).all()
    load_WE, held_E = problem.windows.load_LWE[0], np.bincount(solved.slots_LGP[0].ravel(), minlength=8)
    np.testing.assert_array_equal(held_E, replicas_by_windows(load_WE.astype(float), 12))
