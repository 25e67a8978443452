"""Slots that do not divide, plans for the worst topic, places by luck, and a search that is interrupted."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.placement import Budget, PlacementProblem, find_solver, place
from moecast.placement.limit import stops_on_interrupt
from moecast.placement.plan_shape import PlanShape
from moecast.sim import Workload
from moecast.traces import RoutingTrace

from .test_invariants import skewed_trace, small_cluster, small_model


def two_topics() -> RoutingTrace:
    """Each topic chooses its own half of the experts, evenly; contiguous ranks serve one topic each."""
    trace = skewed_trace(0, layers=1, experts=8, choices=2, tokens=4096, phase="prefill")
    topic_T = (np.arange(4096) // 16 % 2).astype(np.int16)
    member_TK = np.argsort(np.random.default_rng(0).random((4096, 4)), axis=1)[:, :2]
    experts_TLK = (4 * topic_T[:, None] + member_TK)[:, None].astype(np.uint16)
    return replace(trace, topics=("a", "b"), topic_T=topic_T, experts_TLK=experts_TLK)


def worst_balance(slots_GP: np.ndarray, trace: RoutingTrace) -> float:
    rank_E = np.array([int(np.argwhere(slots_GP == e)[0, 0]) for e in range(8)])
    loads = [np.bincount(rank_E[trace.experts_TLK[trace.topic_T == t, 0].ravel()], minlength=2) for t in (0, 1)]
    return float(min(load.mean() / load.max() for load in loads))


def test_a_robust_plan_balances_every_topic() -> None:
    """Topics apart cost no copies and are balanced together; one topic alone then has half the ranks."""
    trace, workload = two_topics(), Workload(phase="prefill", tokens_per_rank=128, steps=2)
    worst = {
        robust: worst_balance(
            place(
                small_cluster(1), small_model(1, 8, 2), trace, workload, ep=2, balance_weight=20.0, robust=robust
            ).plan.slots_DLGP[0, 0],
            trace,
        )
        for robust in (None, "topic")
    }
    assert worst[None] < worst["topic"]
    assert worst["topic"] > 0.9


@pytest.mark.parametrize(("robust", "topics"), [("topic", ()), ("day", ("a", "b"))])
def test_what_a_plan_cannot_be_robust_against(robust: str, topics: tuple[str, ...]) -> None:
    trace = two_topics()
    if not topics:
        trace = replace(trace, topics=(), topic_T=np.full(4096, -1, np.int16))
    with pytest.raises(MoecastError, match="robust"):
        place(
            small_cluster(1),
            small_model(1, 8, 2),
            trace,
            Workload(phase="prefill", tokens_per_rank=64),
            ep=2,
            robust=robust,
        )


@pytest.mark.parametrize("solver", ["local-search", "balance", "random", "contiguous"])
def test_slots_in_all_are_dealt_evenly(solver: str) -> None:
    shape = PlanShape(slots=18).contiguous((1, 16, 3), None, ranks=4)
    problem = PlacementProblem(
        cluster=small_cluster(1),
        model=small_model(1, 16, 3),
        wanted=shape,
        trace=skewed_trace(3, layers=1, experts=16, choices=3, tokens=512, phase="prefill"),
        workload=Workload(phase="prefill", tokens_per_rank=32, steps=2),
    )
    assert problem.slots_G.tolist() == [4, 5, 4, 5]
    found = place(
        problem.cluster, problem.model, problem.trace, problem.workload, solver=solver, slots=18, work_limit=500
    )
    found.plan.check_legal()
    assert (found.plan.slots_DLGP[0, 0] >= 0).sum(1).max() <= 5
    assert found.wasted_slots == 0
    assert find_solver("eplb").supports(problem) == "needs equally many slots on every rank"


@pytest.mark.parametrize("shape", [{"slots": 15}, {"slots": 18, "slots_per_rank": 5}])
def test_slots_that_cannot_be(shape: dict[str, int]) -> None:
    with pytest.raises(MoecastError, match="slots"):
        PlanShape(**shape).contiguous((1, 16, 3), None, ranks=4)


def test_the_first_interrupt_ends_the_search_and_the_handler_goes() -> None:
    budget, before = Budget(), signal.getsignal(signal.SIGINT)
    with stops_on_interrupt(budget):
        assert budget.seconds_left == float("inf")
        os.kill(os.getpid(), signal.SIGINT)
        assert (budget.stopped, budget.seconds_left) == (True, 0.0)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupted_or_expired_search_gives_the_best_so_far_with_an_honest_gap() -> None:
    asked = (
        small_cluster(1),
        small_model(2, 16, 3),
        skewed_trace(3, layers=2, experts=16, choices=3, tokens=512, phase="prefill"),
        Workload(phase="prefill", tokens_per_rank=32, steps=2),
    )

    def stop(_: int, __: int) -> None:  # a user who has seen enough when the first layer is done
        if not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    stopped: list[bool] = []
    cut = place(*asked, slots_per_rank=3, progress=stop)
    assert "stopped by Ctrl-C with the best so far" in cut.note
    for found in (cut, place(*asked, slots_per_rank=3, time_limit_s=0.05)):
        found.plan.check_legal()
        assert found.bound_s is not None
        assert found.bound_s <= found.objective_s
        assert found.gap == pytest.approx(1 - found.bound_s / found.objective_s)


@pytest.mark.slow
def test_threads_do_not_change_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = skewed_trace(3, layers=4, experts=16, choices=3, tokens=512, phase="prefill")
    found = []
    for threads in ("1", "2"):
        monkeypatch.setenv("MOECAST_THREADS", threads)
        found.append(
            place(
                small_cluster(1),
                small_model(4, 16, 3),
                trace,
                Workload(phase="prefill", tokens_per_rank=32, steps=2),
                slots_per_rank=3,
                work_limit=4000,
                seed=5,
            ).plan.slots_DLGP
        )
    np.testing.assert_array_equal(found[0], found[1])
