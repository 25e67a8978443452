"""Solvers against published results, brute force and the trace of a real model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.placement import Budget, Objective, Placement, PlacementProblem, Solved, find_solver, place, rebalance
from moecast.placement.eplb import Eplb
from moecast.placement.local_search import LocalSearch
from moecast.placement.solvers import find_load_solver
from moecast.sim import ModelShape, Plan, Workload, load_model
from moecast.traces import RoutingTrace, balance_pooled, fan_out, import_npz, load_LE
from tests.sim.clusters import by_roofline

from .test_invariants import skewed_trace, small_cluster, small_model

EPLB_LOAD = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
EPLB_SLOTS = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]


def test_eplb_reproduces_its_published_example() -> None:
    slots_LGP = rebalance(EPLB_LOAD, slots=16, ranks=8, expert_groups=4, nodes=2)
    assert slots_LGP.reshape(2, 16).tolist() == EPLB_SLOTS
    fullest = []
    for load_E, slots_GP in zip(np.array(EPLB_LOAD, float), slots_LGP, strict=True):
        replicas_E = np.bincount(slots_GP.ravel(), minlength=12)
        fullest.append((load_E / replicas_E)[slots_GP].sum(1).max())
    assert fullest == [156, 179.5]


def ranks_of(slots_LGP: np.ndarray, experts: int) -> np.ndarray:
    table = np.zeros((len(slots_LGP), experts), np.int64)
    for layer, rank, slot in np.argwhere(slots_LGP >= 0):
        table[layer, slots_LGP[layer, rank, slot]] = rank
    return table


@pytest.fixture(scope="module")
def halves(shared_traces: Path) -> tuple[RoutingTrace, RoutingTrace]:
    """DeepSeek-V2-Lite's trace: the first half of each topic to plan on, the rest to measure on."""
    return import_npz(shared_traces / "deepseek-v2-lite.npz").split(0.5)


def measured(measuring: RoutingTrace, slots_LGP: np.ndarray) -> tuple[float, float]:
    table = ranks_of(slots_LGP, 64)
    return balance_pooled(measuring, table, n_ranks=8), fan_out(measuring, table)


def test_contiguous_on_a_real_trace(halves: tuple[RoutingTrace, RoutingTrace]) -> None:
    slots = Plan.contiguous(layers=26, experts=64, choices=6, ep=8).slots_DLGP[0]
    assert measured(halves[1], slots) == (pytest.approx(0.795, abs=5e-4), pytest.approx(4.552, abs=5e-4))


def test_eplb_on_a_real_trace(halves: tuple[RoutingTrace, RoutingTrace]) -> None:
    slots = rebalance(load_LE(halves[0]), slots=64, ranks=8)
    assert measured(halves[1], slots) == (pytest.approx(0.967, abs=0.01), pytest.approx(4.616, abs=0.01))


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "balance", "copies"), [(0.08, 0.86, 3.47), (0.25, 0.94, 3.58)])
def test_local_search_on_a_real_trace(
    halves: tuple[RoutingTrace, RoutingTrace], weight: float, balance: float, copies: float
) -> None:
    workload = Workload(phase="prefill", tokens_per_rank=2000, steps=1)
    cluster, model = by_roofline("dgx-h200", nodes=1), load_model("deepseek-v2-lite")
    found = place(cluster, model, halves[0], workload, solver="local-search", balance_weight=weight)
    seen_balance, seen_copies = measured(halves[1], found.plan.slots_DLGP[0])
    assert seen_balance >= balance
    assert seen_copies <= copies


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"solver": "exact", "slots_per_rank": 3}, "8 slots would be left"),
        ({"solver": "best"}, "contiguous"),
        ({"solver": "eplb", "balance_weight": 2.0}, "local-search"),
        ({"slots_per_rank": 1}, "cannot hold"),
        ({"time_limit_s": 0.0}, "time_limit"),
        ({"work_limit": 0}, "work_limit"),
        ({"ep": 5}, "ep = 5"),
        ({"expert_groups": 4}, "only eplb"),
        ({"solver": "eplb", "expert_groups": 3}, "do not divide 16"),
        ({"solver": "eplb", "expert_groups": 0}, "at least 1"),
    ],
)
def test_questions_without_an_answer(more: dict[str, object], words: str) -> None:
    trace = skewed_trace(0, layers=1, experts=16, choices=2, tokens=512, phase="prefill")
    with pytest.raises(MoecastError, match=words) as caught:
        place(
            small_cluster(1),
            small_model(1, 16, 2),
            trace,
            Workload(phase="prefill", tokens_per_rank=8, steps=2),
            **{"ep": 8, **more},
        )
    assert "\n" not in str(caught.value)


def test_a_time_limit_gives_a_legal_plan_and_an_honest_gap() -> None:
    trace = skewed_trace(5, layers=4, experts=32, choices=4, tokens=2048, phase="prefill")
    workload = Workload(phase="prefill", tokens_per_rank=64, steps=2)
    found = place(small_cluster(1), small_model(4, 32, 4), trace, workload, slots_per_rank=5, time_limit_s=0.05)
    found.plan.check_legal()
    assert found.wasted_slots == 0
    assert 0 < found.bound_s <= found.objective_s
    assert found.gap == pytest.approx(1 - found.bound_s / found.objective_s)


def test_full_plans_leave_no_slot_empty() -> None:
    trace = skewed_trace(5, layers=2, experts=16, choices=2, tokens=1024, phase="decode")
    workload = Workload(phase="decode", tokens_per_rank=4, steps=2)
    for solver in ("contiguous", "round-robin", "local-search"):
        found = place(
            small_cluster(1),
            small_model(2, 16, 2),
            trace,
            workload,
            solver=solver,
            slots_per_rank=3,
            fill=True,
            work_limit=5000,
        )
        assert (found.plan.slots_DLGP >= 0).all()
        assert found.wasted_slots == 0


def test_groups_of_the_router_reach_eplb() -> None:
    """Groups stay whole on a node where they divide, by the model's own number or by one that is given."""
    trace = skewed_trace(1, layers=2, experts=32, choices=2, tokens=2048, phase="prefill")
    cluster, plain = small_cluster(2), small_model(2, 32, 2)
    workload = Workload(phase="prefill", tokens_per_rank=16, steps=2)

    def nodes_of_groups(model: ModelShape, **more: int) -> tuple[list[int], str]:
        found = place(cluster, model, trace, workload, solver="eplb", **more)
        slots_NLX = found.plan.slots_DLGP[0].reshape(2, 2, -1)
        return [
            len({n for n in (0, 1) if (slots_NLX[layer, n] // 8 == g).any()}) for layer in (0, 1) for g in range(4)
        ], found.note

    grouped = dataclasses.replace(plain, expert_groups=4, groups_per_token=2)
    nodes, note = nodes_of_groups(grouped)
    assert nodes == [1] * 8
    assert "hierarchical: each of 4 expert groups" in note
    assert nodes_of_groups(plain, expert_groups=4) == (nodes, note)
    nodes, note = nodes_of_groups(plain)
    assert max(nodes) == 2
    assert "no expert groups" in note
    assert "1 expert" not in note


class Reversed:
    """The docs' example: contiguous, from the last expert to the first."""

    name = "reversed"

    def supports(self, problem: PlacementProblem) -> str | None:
        return "needs experts that divide" if problem.wanted.experts % problem.wanted.ep else None

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:  # noqa: ARG002
        slots_LGP = problem.empty_slots_LGP()
        slots_LGP[..., : problem.wanted.experts // problem.wanted.ep] = np.arange(problem.wanted.experts)[::-1].reshape(
            problem.wanted.ep, -1
        )
        return Solved(slots_LGP=slots_LGP, note="turned over")


def asked(**more: Any) -> Placement:
    trace = skewed_trace(0, layers=1, experts=16, choices=2, tokens=512, phase="prefill")
    return place(
        small_cluster(1), small_model(1, 16, 2), trace, Workload(phase="prefill", tokens_per_rank=8, steps=2), **more
    )


def test_a_solver_of_ones_own() -> None:
    found = asked(solver=Reversed())
    assert found.plan.slots_DLGP[0, 0].tolist() == [[15 - 2 * rank, 14 - 2 * rank] for rank in range(8)]
    assert (found.solver, found.plan.made_by.solver, found.note.split(";")[0]) == (
        "reversed",
        "reversed",
        "turned over",
    )
    assert found.objective_s >= found.bound_s > 0


class WrongShape(Reversed):
    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:  # noqa: ARG002
        return Solved(slots_LGP=np.zeros((1, 2), np.int32))


class Wrapping(Reversed):
    """Of its first expert, 32 bits say 0."""

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:
        slots_LGP = super().solve(problem, objective, budget, seed=seed).slots_LGP.astype(np.int64)
        slots_LGP[0, 0, 0] = 2**32
        return Solved(slots_LGP=slots_LGP)


class NoAnswer(Reversed):
    def solve(self, *given: object, **named: object) -> Any:  # noqa: ARG002
        return None


class Missing(Reversed):
    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:  # noqa: ARG002
        return Solved(slots_LGP=np.zeros_like(problem.empty_slots_LGP()))


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (object(), "lacks name, supports, solve"),
        (Reversed, "lacks name"),
        (WrongShape(), r"shape \[1, 2\], must be \[1, 8, 2\]"),
        (Wrapping(), r"slots_LGP\[0\]\[0\]\[0\] = 4294967296: must be a whole number of -1 to 15"),
        (NoAnswer(), "NoneType, not a Solved"),
        (Missing(), "misses expert 1"),
    ],
)
def test_what_is_no_solver_or_no_placement_is_said_in_one_line(solver: Any, words: str) -> None:
    with pytest.raises(MoecastError, match=words) as caught:
        asked(solver=solver)
    assert "\n" not in str(caught.value)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shifted(Reversed):
    """A solver with an option."""

    name: str = "shifted"
    by: int = 0

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:
        slots_LGP = Reversed.solve(self, problem, objective, budget, seed=seed).slots_LGP
        return Solved(slots_LGP=np.roll(slots_LGP, self.by, axis=1))


def test_options_are_fields_of_solvers() -> None:
    assert find_solver("local-search", {"balance_weight": 2.0, "full": True}) == LocalSearch(
        balance_weight=2.0, full=True
    )
    assert find_solver(LocalSearch(full=True), {"balance_weight": None}) == LocalSearch(full=True)
    assert find_solver(Shifted(), {"by": 3}) == Shifted(by=3)
    assert find_load_solver("eplb", {"expert_groups": 4}) == Eplb(expert_groups=4)
    for solver, option in (("balance", "by"), ("local-search", "name"), (Reversed(), "balance_weight")):
        with pytest.raises(MoecastError, match="does not"):
            find_solver(solver, {option: 1})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Eplb(expert_groups=0),
        lambda: Eplb(expert_groups=True),
        lambda: Eplb(expert_groups=1.5),  # type: ignore[arg-type]
        lambda: LocalSearch(balance_weight=-1.0),
        lambda: LocalSearch(balance_weight=float("nan")),
        lambda: LocalSearch(balance_at_least=1.01),
        lambda: LocalSearch(balance_at_least=0.9, balance_weight=1.0),
    ],
)
def test_solvers_check_their_options_when_they_are_made(make: Any) -> None:
    with pytest.raises(MoecastError, match=r"expert_groups|balance_weight|balance_at_least"):
        make()
