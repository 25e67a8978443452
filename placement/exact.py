"""The exact solver: the least linear layer cost, proved by CP-SAT, for small cases without replicas.

One model per layer, since the linear layer cost (see `moecast.placement.cost`) adds up over layers:

- ``x[e, g]``: expert e stands on rank g; each on one rank, ranks within their slots.
- ``y[c, g]``, ``z[c, n]``: a choice set c (the experts one token chose, with how often that
  happened) has an expert on rank g, in domain n; at least x of each of its experts. They are only
  ever pushed down, so they need no upper bound.
- ``worst[w]``: at least every rank's cost in window w; their sum is minimised, with the copies'
  shared part.

Numbers are whole picoseconds.

Axes: L MoE layer, W window, E expert, G rank, C choice set, K choice, N domain, P slot.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.placement.cost import MEAN_SHARE, LayerCost
from moecast.placement.solver import Solved
from moecast.sim.slots import EMPTY

if TYPE_CHECKING:
    from moecast.placement.limit import Budget
    from moecast.placement.objective import Objective
    from moecast.placement.problem import PlacementProblem

Int32 = npt.NDArray[np.int32]

MOST_PLACES = 256  # experts × ranks
MOST_SET_PLACES = 40_000  # choice sets × ranks, of one layer
PICOSECONDS = 1e12
# 18 s for a window of a layer: products of it with ranks and windows stay whole in 64 bits
MOST_PICOSECONDS = 1 << 44
DEFAULT_SECONDS = 60.0  # of deterministic solver time, without any limit

Set = tuple[int, int, tuple[int, ...]]  # window, source rank, experts in order


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One layer's answer: the placement, its linear cost, and what no placement can cost less than (picoseconds)."""

    rank_E: Int32
    cost: float
    floor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """The least linear layer cost, layer by layer, with a proof; stopped early, how far it may be off."""

    name: str = "exact"

    def supports(self, problem: PlacementProblem) -> str | None:
        """Take small problems in which every slot holds another expert."""
        wanted = problem.wanted
        if problem.spare_slots:
            return f"it places each expert once, and {problem.spare_slots} slots would be left"
        if wanted.experts * wanted.ep > MOST_PLACES:
            return f"{wanted.experts} experts × {wanted.ep} ranks, it takes up to {MOST_PLACES} together"
        largest = max(len(_choice_sets(problem, layer)) for layer in range(wanted.layers)) * wanted.ep
        if largest > MOST_SET_PLACES:
            return f"{largest} different choice sets × ranks, it takes up to {MOST_SET_PLACES}: use fewer tokens"
        return None

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:  # noqa: ARG002
        """Solve each layer by itself, with an equal part of what is left of the budget."""
        cost, layers = LayerCost.of(problem), problem.wanted.layers
        slots_LGP = problem.empty_slots_LGP()
        answers = []
        for layer in range(layers):
            answer = _solve_layer(problem, layer, cost, budget, layers - layer, seed)
            answers.append(answer)
            slots_LGP[layer] = _slots_of(answer.rank_E, problem)
            budget.tell("proving", (layer + 1) / layers)
        total, floor = sum(a.cost for a in answers), sum(a.floor for a in answers)
        gap = 0.0 if total <= floor else 1 - floor / total
        proved = "the linear layer cost is proved to be the least" if gap < 1e-6 else "stopped early"
        return Solved(slots_LGP=slots_LGP, note=f"{proved}: {100 * gap:.1f} % between it and the proved bound")


def _choice_sets(problem: PlacementProblem, layer: int) -> Counter[Set]:
    """How often each set of experts is chosen together, by window and by the rank that holds the token."""
    windows = problem.windows
    rows_TK = np.sort(problem.trace.experts_TLK[windows.row_T, layer], axis=1)
    sets: Counter[Set] = Counter()
    for window, rank, row in zip(windows.window_T.tolist(), windows.rank_T.tolist(), rows_TK.tolist(), strict=True):
        sets[(window, rank, tuple(expert for expert in row if expert < problem.wanted.experts))] += 1
    return sets


def _solve_layer(
    problem: PlacementProblem, layer: int, cost: LayerCost, budget: Budget, layers_left: int, seed: int
) -> _Layer:
    from ortools.sat.python import cp_model  # 0.3 s, and only this solver needs it

    model: Any = cp_model.CpModel()
    x = _places(model, problem)
    _ranks_cost(model, x, problem, layer, cost)
    hint_E = np.repeat(np.arange(problem.wanted.ep), problem.slots_G)
    for (expert, rank), variable in x.items():
        model.add_hint(variable, int(hint_E[expert] == rank))
    solver: Any = cp_model.CpSolver()
    solver.parameters.num_workers = 1  # one worker is deterministic
    solver.parameters.random_seed = seed & 0x7FFFFFFF
    work = budget.work_left(round(DEFAULT_SECONDS * 1e6)) / 1e6 / layers_left
    solver.parameters.max_deterministic_time = max(work, 1e-3)
    if budget.limit.time_s is not None:
        solver.parameters.max_time_in_seconds = max(budget.seconds_left / layers_left, 0.05)
    status = solver.solve(model)
    assert status != cp_model.MODEL_INVALID, model.validate()
    budget.spend(round(solver.response_proto.deterministic_time * 1e6))
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):  # not even the hint was checked in time
        return _Layer(rank_E=hint_E.astype(np.int32), cost=float("inf"), floor=0.0)
    rank_E = np.zeros(problem.wanted.experts, np.int32)
    for (expert, rank), variable in x.items():
        if solver.value(variable):
            rank_E[expert] = rank
    return _Layer(rank_E=rank_E, cost=solver.objective_value, floor=solver.best_objective_bound)


def _places(model: Any, problem: PlacementProblem) -> dict[tuple[int, int], Any]:
    """The variables x, with each expert on one rank and no rank beyond its slots."""
    experts, ranks = range(problem.wanted.experts), range(problem.wanted.ep)
    x = {(e, g): model.new_bool_var(f"x{e},{g}") for e in experts for g in ranks}
    for e in experts:
        model.add_exactly_one(x[e, g] for g in ranks)
    for g in ranks:
        model.add(sum(x[e, g] for e in experts) <= int(problem.slots_G[g]))
    return x


def _ranks_cost(
    model: Any, x: dict[tuple[int, int], Any], problem: PlacementProblem, layer: int, cost: LayerCost
) -> None:
    """Every rank's cost in every window, and the objective over them."""
    windows, ranks = problem.windows, range(problem.wanted.ep)
    choice, replica, copy, domain_copy = (
        round(price * PICOSECONDS) for price in (cost.choice_s, cost.replica_s, cost.copy_s, cost.domain_copy_s)
    )
    rank_copies, domain_copies = _copies(model, x, problem, layer, ranks_too=copy > 0, domains_too=domain_copy > 0)
    load_WE = windows.load_LWE[layer]
    parts, shared = [], []
    for w in range(windows.n):
        steps = round(float(windows.step_share_W[w]) * windows.n_steps)
        worst = model.new_int_var(0, MOST_PICOSECONDS, f"worst{w}")
        parts.append(worst)
        for g in ranks:
            copies = copy * rank_copies(w, g) + domain_copy * domain_copies(w, int(problem.domain_G[g]))
            held = sum((choice * int(load_WE[w, e]) + steps * replica) * x[e, g] for e in range(problem.wanted.experts))
            model.add(_WHOLE * worst >= _WHOLE * held + (_WHOLE - _SHARED) * copies)
            shared.append(copies)
    ranks_n = len(ranks)
    model.minimize(_WHOLE * ranks_n * sum(parts) + _SHARED * sum(shared))


_WHOLE = 100
_SHARED = round(MEAN_SHARE * _WHOLE)  # parts in a hundred, so that the model is in whole numbers


def _copies(
    model: Any,
    x: dict[tuple[int, int], Any],
    problem: PlacementProblem,
    layer: int,
    *,
    ranks_too: bool,
    domains_too: bool,
) -> tuple[Any, Any]:
    """Sums of copies into a rank, and into a domain, by window; own ranks and own domains are free."""
    into_rank: dict[tuple[int, int], list[Any]] = {}
    into_domain: dict[tuple[int, int], list[Any]] = {}
    reached: dict[tuple[str, int, tuple[int, ...]], Any] = {}

    def reach(kind: str, where: int, experts: tuple[int, ...], members: list[int]) -> Any:
        key = (kind, where, experts)
        if key not in reached:
            reached[key] = model.new_bool_var(f"{kind}{where},{experts}")
            for e in experts:
                for g in members:
                    model.add_implication(x[e, g], reached[key])
        return reached[key]

    members_of = {n: np.flatnonzero(problem.domain_G == n).tolist() for n in range(problem.n_domains)}
    for (window, source, experts), times in _choice_sets(problem, layer).items():
        for g in range(problem.wanted.ep) if ranks_too else ():
            if g != source:
                into_rank.setdefault((window, g), []).append(times * reach("y", g, experts, [g]))
        for n in range(problem.n_domains) if domains_too else ():
            if n != problem.domain_G[source]:
                into_domain.setdefault((window, n), []).append(times * reach("z", n, experts, members_of[n]))
    return (lambda w, g: sum(into_rank.get((w, g), []))), (lambda w, n: sum(into_domain.get((w, n), [])))


def _slots_of(rank_E: Int32, problem: PlacementProblem) -> Int32:
    slots_GP = np.full((problem.wanted.ep, problem.wanted.max_slots), EMPTY, np.int32)
    for rank in range(problem.wanted.ep):
        held = np.flatnonzero(rank_E == rank)
        slots_GP[rank, : len(held)] = held
    return slots_GP
