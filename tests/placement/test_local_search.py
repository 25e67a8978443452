"""Local search: what it weighs, what it may use, and how it ends when work or time is short."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moecast.placement import Budget, Limit, Objective, PlacementProblem, find_solver
from moecast.placement.finalists import balance_L
from moecast.placement.local_search import Candidate, LocalSearch, search
from moecast.sim import Plan, Workload
from moecast.sim.slots import EMPTY

from .test_invariants import skewed_trace, small_cluster, small_model


def search_problem(
    *, slots: int = 5, phase: str = "prefill", mode: str = "per_rank", layers: int = 2
) -> PlacementProblem:
    """Sixteen experts on four ranks, with slots to spare."""
    return PlacementProblem(
        cluster=small_cluster(1),
        model=small_model(layers, 16, 3),
        trace=skewed_trace(7, layers=layers, experts=16, choices=3, tokens=2048, phase=phase),
        workload=Workload(phase=phase, tokens_per_rank=64 if phase == "prefill" else 2, steps=2),
        wanted=Plan.contiguous(layers=layers, experts=16, choices=3, ep=4, slots_per_rank=slots).with_(dispatch=mode),
    )


def measured(problem: PlacementProblem, slots_LGP: np.ndarray) -> tuple[float, float]:
    """Pooled load of the fullest rank over the mean, and ranks that a token goes to, over the windows' tokens."""
    windows = problem.windows
    fullest, ranks = [], []
    for layer, slots_GP in enumerate(slots_LGP):
        rank_E = np.zeros(16, int)
        for g, row in enumerate(slots_GP):
            rank_E[row[row != EMPTY]] = g
        chosen = rank_E[problem.trace.experts_TLK[windows.row_T, layer]]
        load_G = np.bincount(chosen.ravel(), minlength=4)
        fullest.append(load_G.max() / load_G.mean())
        ranks.append(np.mean([len(set(row)) for row in chosen.tolist()]))
    return float(np.mean(fullest)), float(np.mean(ranks))


def circles_of_unlike_size() -> PlacementProblem:
    """Experts 0 to 3 are chosen together, and so on; each circle is chosen more often than the one before."""
    rng = np.random.default_rng(0)
    trace = skewed_trace(0, layers=1, experts=16, choices=3, tokens=8192, phase="prefill")
    circle_T = rng.choice(4, 8192, p=[0.1, 0.2, 0.3, 0.4])
    member_TK = np.argsort(rng.random((8192, 4)), axis=1)[:, :3]
    experts_TLK = (4 * circle_T[:, None] + member_TK)[:, None].astype(np.uint16)
    return PlacementProblem(
        cluster=small_cluster(1),
        model=small_model(1, 16, 3),
        trace=replace(trace, experts_TLK=experts_TLK),
        workload=Workload(phase="prefill", tokens_per_rank=512, steps=2),
        wanted=Plan.contiguous(layers=1, experts=16, choices=3, ep=4).with_(dispatch="per_rank"),
    )


def test_a_weight_by_hand_trades_balance_for_fan_out() -> None:
    """Without weight, circles stand together and the largest fills its rank; with much, they are torn apart."""
    problem = circles_of_unlike_size()
    objective = Objective(problem)
    found = [
        measured(problem, LocalSearch(balance_weight=weight).solve(problem, objective, Budget()).slots_LGP)
        for weight in (0.0, 1e3)
    ]
    (uneven, near), (even, far) = found
    assert (uneven, near) == (pytest.approx(1.6, abs=0.1), 1.0)
    assert even < 1.05
    assert far > 1.5


@pytest.mark.parametrize("replicas", [16, 18, 20])
@pytest.mark.parametrize("full", [True, False])
def test_a_candidate_uses_as_many_replicas_as_it_says(replicas: int, full: bool) -> None:
    problem = search_problem()
    candidate = Candidate(balance_weight=1.0, replicas=replicas, full=full)
    slots_LGP = search(problem, candidate, Budget(Limit(work=2000)), seed=1)
    problem.plan(slots_LGP).check_legal()
    used_L = (slots_LGP != EMPTY).sum(axis=(1, 2))
    assert (used_L == replicas).all() if full else (used_L <= replicas).all()
    assert problem.plan(slots_LGP).wasted_slots() == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["per_rank", "per_choice"])
def test_full_plans_use_every_slot_and_others_may_not(mode: str) -> None:
    problem = search_problem(phase="decode", mode=mode, layers=1)
    objective = Objective(problem)
    full = LocalSearch(full=True).solve(problem, objective, Budget(Limit(work=5000))).slots_LGP
    assert (full != EMPTY).all()
    free = LocalSearch().solve(problem, objective, Budget(Limit(work=5000))).slots_LGP
    assert objective.step_s(free) <= objective.step_s(full) * (1 + 1e-12)


@pytest.mark.parametrize("limit", [Limit(work=1), Limit(time_s=1e-6), Limit(time_s=0.3)])
def test_stopped_early_the_plan_is_legal_and_no_slower_than_the_simple_ones(limit: Limit) -> None:
    problem = search_problem(layers=1)
    objective = Objective(problem)
    slots_LGP = find_solver("local-search").solve(problem, objective, Budget(limit), seed=2).slots_LGP
    problem.plan(slots_LGP).check_legal()
    assert problem.plan(slots_LGP).wasted_slots() == 0
    balanced = find_solver("balance").solve(problem, objective, Budget()).slots_LGP
    assert objective.estimate(slots_LGP).step_s <= objective.estimate(balanced).step_s * (1 + 1e-9) or (
        objective.step_s(slots_LGP) <= objective.step_s(balanced)
    )


@pytest.mark.slow
def test_work_is_what_was_judged_and_no_more() -> None:
    problem = search_problem()
    budget = Budget(Limit(work=4000))
    find_solver("local-search").solve(problem, Objective(problem), budget)
    assert 0 < budget.used <= 4000 + problem.wanted.layers * 4


def test_a_plan_that_must_be_even_is_and_costs_no_more_than_the_most_even() -> None:
    problem = circles_of_unlike_size()
    objective = Objective(problem)
    loose, even = (
        LocalSearch(balance_at_least=least).solve(problem, objective, Budget(Limit(work=20_000))).slots_LGP
        for least in (0.0, 0.97)
    )
    assert balance_L(problem, loose).min() < 0.97 <= balance_L(problem, even).min()
    assert objective.estimate(loose).step_s < objective.estimate(even).step_s
    most_even = find_solver("balance").solve(problem, objective, Budget()).slots_LGP
    assert objective.estimate(even).step_s <= objective.estimate(most_even).step_s


def test_where_it_is_reached_nowhere_the_most_even_is_taken() -> None:
    """Loads that are no multiple of ranks cannot be even."""
    problem = search_problem(slots=4, layers=1)
    solved = LocalSearch(balance_at_least=1.0).solve(problem, Objective(problem), Budget(Limit(work=4000)))
    balanced = find_solver("balance").solve(problem, Objective(problem), Budget()).slots_LGP
    assert balance_L(problem, solved.slots_LGP)[0] >= balance_L(problem, balanced)[0] - 1e-12


@pytest.mark.slow
def test_the_usual_work_is_said_and_asked_for_gives_the_same_plan() -> None:
    """It is counted, so that whoever asks for as much gets the same plan; with a limit nothing is to be said."""
    problem = search_problem(layers=1)
    budget = Budget()
    usual = find_solver("local-search").solve(problem, Objective(problem), budget, seed=3)
    assert usual.work.startswith(f"{budget.used:,} moves judged")
    again = find_solver("local-search").solve(problem, Objective(problem), Budget(), seed=3)
    np.testing.assert_array_equal(usual.slots_LGP, again.slots_LGP)
    assert find_solver("local-search").solve(problem, Objective(problem), Budget(Limit(work=500)), seed=3).work == ""
