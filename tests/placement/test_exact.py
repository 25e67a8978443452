"""The exact solver against all placements of small problems, and what it says when it is stopped early."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.placement import Budget, Limit, Objective, PlacementProblem, find_solver
from moecast.sim import Plan, Workload

from .plain_cost import every_placement, linear_cost
from .test_invariants import skewed_trace, small_cluster, small_model


def problem_of(
    seed: int, *, experts: int, ep: int, mode: str, phase: str = "prefill", tokens: int = 8, layers: int = 1
) -> PlacementProblem:
    """Half of the ranks stand in another domain."""
    layout = Plan.contiguous(layers=layers, experts=experts, choices=2, ep=ep)
    return PlacementProblem(
        cluster=small_cluster(2),
        model=small_model(layers, experts, 2),
        trace=skewed_trace(seed, layers=layers, experts=experts, choices=2, tokens=tokens * ep * 2, phase=phase),
        workload=Workload(phase=phase, tokens_per_rank=tokens if phase == "prefill" else 1, steps=2),
        wanted=layout.with_(dispatch=mode, gpu_of_rank=tuple(8 * (r % 2) + r for r in range(ep))),
    )


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 9999),
    shape=st.sampled_from([(4, 2), (6, 2), (6, 3)]),
    mode=st.sampled_from(["per_choice", "per_rank", "per_domain", "nccl"]),
    phase=st.sampled_from(["prefill", "decode"]),
)
def test_no_placement_has_a_smaller_linear_cost(seed: int, shape: tuple[int, int], mode: str, phase: str) -> None:
    experts, ep = shape
    problem = problem_of(seed, experts=experts, ep=ep, mode=mode, phase=phase)
    solved = find_solver("exact").solve(problem, Objective(problem), Budget())
    least = min(linear_cost(problem, slots_GP) for slots_GP in every_placement(experts, ep))
    assert linear_cost(problem, solved.slots_LGP[0]) == pytest.approx(least, rel=1e-4)  # whole picoseconds
    assert solved.note.startswith("the linear layer cost is proved to be the least: 0.0 %")


@pytest.mark.parametrize("work", [1, 2_000, 50_000])
def test_stopped_early_it_is_legal_and_says_how_far_it_may_be_off(work: int) -> None:
    problem = problem_of(3, experts=12, ep=4, mode="per_rank", tokens=48, layers=2)
    budget = Budget(Limit(work=work))
    solved = find_solver("exact").solve(problem, Objective(problem), budget)
    problem.plan(solved.slots_LGP).check_legal()
    again = find_solver("exact").solve(problem, Objective(problem), Budget(Limit(work=work)))
    np.testing.assert_array_equal(solved.slots_LGP, again.slots_LGP)
    found = re.search(r"([0-9.]+) % between it and the proved bound", solved.note)
    assert found is not None
    assert 0 <= float(found[1]) <= 100


def test_what_is_too_large_is_refused() -> None:
    exact = find_solver("exact")
    assert exact.supports(problem_of(0, experts=4, ep=2, mode="per_rank")) is None
    assert "experts × 16 ranks" in str(exact.supports(wide_problem(32, 16)))
    layout = Plan.contiguous(layers=1, experts=4, choices=2, ep=2, slots_per_rank=3)
    spare = PlacementProblem(
        cluster=small_cluster(1),
        model=small_model(1, 4, 2),
        wanted=layout,
        trace=skewed_trace(0, layers=1, experts=4, choices=2, tokens=64, phase="prefill"),
        workload=Workload(phase="prefill", tokens_per_rank=8, steps=1),
    )
    assert "2 slots would be left" in str(exact.supports(spare))


def wide_problem(experts: int, ep: int) -> PlacementProblem:
    return PlacementProblem(
        cluster=small_cluster(2),
        model=small_model(1, experts, 2),
        trace=skewed_trace(0, layers=1, experts=experts, choices=2, tokens=512, phase="prefill"),
        workload=Workload(phase="prefill", tokens_per_rank=8, steps=1),
        wanted=Plan.contiguous(layers=1, experts=experts, choices=2, ep=ep),
    )
