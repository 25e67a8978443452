"""Local search: load and fan-out together, for the least seconds under the Workload.

For several weights of balance against copies, and for several numbers of replicas (they spread
load, but where a step is bound by reading weights each of them costs), every layer is annealed
under the linear layer cost. What is found, and what the simpler solvers find, is estimated by the
step; the best of each layer make one more plan. The plans that the estimate cannot tell from the
best are timed by the simulator, and the fastest wins.

Axes: L MoE layer, G rank, P slot of a rank.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.placement.balance import Balance
from moecast.placement.contiguous import Contiguous
from moecast.placement.cost import LayerCost
from moecast.placement.eplb import Eplb
from moecast.placement.finalists import FINALISTS, SEARCHING, even_enough, fastest, layer_by_layer
from moecast.placement.layer_search import LayerSearch
from moecast.placement.notes import usual_work
from moecast.placement.polish import KEPT, is_small, polished, settled
from moecast.placement.solver import Solved, Solver
from moecast.sim.slots import EMPTY
from moecast.threads import in_order, thread_count

if TYPE_CHECKING:
    from moecast.placement.estimate import Estimate
    from moecast.placement.limit import Budget
    from moecast.placement.objective import Objective
    from moecast.placement.problem import PlacementProblem
    from moecast.placement.windows import Windows

Int32 = npt.NDArray[np.int32]

BALANCE_WEIGHTS = (1.0, 4.0)
EVEN_WEIGHTS = (1.0, 4.0, 16.0, 64.0)  # where balance is asked for
PROPOSALS_PER_SLOT = 500  # and layer and candidate, without a work limit
ROUNDS = 16  # of a layer, between which the clock is looked at; the last one only descends
MOST_PROPOSALS = 4_000_000  # of all layers and candidates, without a work limit
BY_HAND_LONGER = 4  # times that, for the one search of a weight given by hand
LONGEST = 64  # times the first search, as long as there is time
MOST_ITEMS = 2**15 - 1  # the search numbers what is in the slots in 16 bits, with a sign


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What one annealing run weighs and uses.

    Parameters
    ----------
    balance_weight
        What the experts' time counts against the copies'.
    replicas
        Of all experts together, at most.
    full
        They are as many.
    by_hand
        The weight is wanted for itself: all steps of a topic are one window, and all of the copies'
        price stands in the mean, so that the weight trades pooled balance for fan-out and for
        nothing else.
    """

    balance_weight: float
    replicas: int
    full: bool = False
    by_hand: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSearch:
    """Annealed swaps of replicas, layer by layer, judged exactly in every window of tokens.

    Parameters
    ----------
    balance_weight
        What the experts' time counts against the copies', 1 being seconds against seconds. None:
        several are tried and the step time decides, also against the simpler solvers; the plan of a
        given weight is taken as it is.

    balance_at_least
        Balance that each layer must have, all tokens that the plan is made on taken as one step, 1
        being even; the fastest such plan wins, and where a layer reaches it nowhere the most even.
        None: seconds decide alone.
    full
        Use every slot, as serving engines do; otherwise slots stay empty where replicas cost more
        than they give.

    Raises
    ------
    MoecastError
        A weight that is negative or not finite, a balance that is not from 0 to 1, or both at once.
    """

    name: str = "local-search"
    balance_weight: float | None = None
    balance_at_least: float | None = None
    full: bool = False

    def __post_init__(self) -> None:
        least = self.balance_at_least
        if least is not None and not 0 <= least <= 1:
            raise MoecastError("must be from 0 to 1", field="balance_at_least", value=least)
        if least is not None and self.balance_weight is not None:
            raise MoecastError(
                "finds its own weight: say one of them", field="balance_weight", value=self.balance_weight
            )
        weight = self.balance_weight
        if weight is not None and not 0 <= weight < float("inf"):
            rule = "must be finite and not negative"
            raise MoecastError(rule, field="balance_weight", value=weight)

    def supports(self, problem: PlacementProblem) -> str | None:
        """Take what its loops can number."""
        slots = int(problem.slots_G.sum())
        return f"{slots} slots of a layer, it takes up to {MOST_ITEMS}" if slots > MOST_ITEMS else None

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:
        """Search for the fastest placement."""
        solved = self._solved(problem, objective, budget, seed)
        if budget.limit.time_s is None and budget.limit.work is None and not budget.stopped:
            solved = replace(solved, work=usual_work(budget.used))
        return solved

    def _solved(self, problem: PlacementProblem, objective: Objective, budget: Budget, seed: int) -> Solved:
        if self.balance_weight is not None:
            slots = int(problem.slots_G.sum())
            only = Candidate(balance_weight=self.balance_weight, replicas=slots, full=self.full, by_hand=True)
            return Solved(slots_LGP=search(problem, only, budget, seed=seed, longer=BY_HAND_LONGER))
        simple = [
            estimate
            for estimate in _simple_plans(problem, objective, budget, seed)
            if not problem.plan(estimate.slots_LGP).wasted_slots()
            and not (self.full and problem.spare_slots and (estimate.slots_LGP == EMPTY).any())
        ]
        found = self._searched(problem, objective, budget, seed)
        if self.balance_at_least is not None:
            return Solved(slots_LGP=even_enough([*simple, *found], problem, self.balance_at_least))
        mixed = objective.estimate(layer_by_layer([*simple, *found]))
        if not is_small(problem):
            return Solved(slots_LGP=fastest([mixed, *found], simple, objective, budget))
        found += polished(problem, objective, [mixed, *found], budget, full=self.full)
        best_LGP = fastest([mixed, *found], simple, objective, budget, most=KEPT)
        return Solved(slots_LGP=settled(problem, objective, best_LGP, budget, full=self.full))

    def _searched(self, problem: PlacementProblem, objective: Objective, budget: Budget, seed: int) -> list[Estimate]:
        """Anneal for every candidate, and again for the best while a time limit leaves time."""
        reserve_s = _reserved_seconds(problem, objective, budget)
        found: list[Estimate] = []
        candidates = _candidates(problem, full=self.full, even=self.balance_at_least is not None)
        for index, candidate in enumerate(candidates):
            if budget.seconds_left < reserve_s and found:
                break
            share_s = (budget.seconds_left - reserve_s) / (len(candidates) - index)
            slots_LGP = search(problem, candidate, budget, seed=seed, parts=len(candidates), seconds=share_s)
            found.append(objective.estimate(slots_LGP))
        best = candidates[int(np.argmin([estimate.step_s for estimate in found]))]
        return found + _search_longer(problem, objective, best, budget, seed, reserve_s)


def search(
    problem: PlacementProblem,
    candidate: Candidate,
    budget: Budget,
    *,
    seed: int,
    parts: int = 1,
    longer: int = 1,
    seconds: float = float("inf"),
) -> Int32:
    """Anneal all layers for one candidate.

    Parameters
    ----------
    parts
        Of a work limit, this search takes one in so many.
    longer
        Times the usual number of proposals, where no work limit says otherwise.
    seconds
        On the clock, after which it stops with the best so far.
    """
    cost, windows = _weighed(problem, candidate)
    layers, proposals = problem.wanted.layers, _default_proposals(problem, parts, longer)
    if budget.limit.work is not None:
        proposals = max(1, budget.limit.work // (parts * layers))
    begin_s, for_s, threads = budget.seconds, min(seconds, budget.seconds_left), thread_count()

    def one_layer(layer: int) -> tuple[Int32, int]:
        # Layers take turns, so each must be done when its part of the time is over.
        stop_s = begin_s + for_s * min(1.0, (layer // threads + 1) * threads / layers)
        one = LayerSearch(
            problem,
            layer,
            cost=cost,
            replicas=candidate.replicas,
            full=candidate.full,
            seed=seed + layer,
            windows=windows,
            proposals=proposals,
        )
        return _searched(one, proposals, budget, stop_s)

    slots = []
    for slots_GP, used in in_order((partial(one_layer, layer) for layer in range(layers)), threads):
        slots.append(slots_GP)
        budget.spend(used)
        part = budget.used / (budget.limit.work or proposals * layers * parts)
        budget.tell(f"annealing, balance weight {candidate.balance_weight:g}", SEARCHING * part)
    return np.stack(slots)


def _weighed(problem: PlacementProblem, candidate: Candidate) -> tuple[LayerCost, Windows]:
    """The prices and the windows of a candidate."""
    cost = LayerCost.of(problem)
    if not candidate.by_hand:
        return cost.weighted(candidate.balance_weight), problem.windows
    windows = problem.windows if problem.robust else problem.windows.pooled()
    return cost.weighted(candidate.balance_weight, mean_share=1.0), windows


def _searched(one: LayerSearch, proposals: int, budget: Budget, stop_s: float) -> tuple[Int32, int]:
    """Anneal a layer in rounds, fewer proposals in each where the clock is short; returns its slots and the work."""
    used = 0
    for number in range(ROUNDS):
        left_s = min(stop_s - budget.seconds, budget.seconds_left)
        if left_s <= 0:
            break
        share, round_s = proposals // ROUNDS + (number < proposals % ROUNDS), budget.seconds
        if number == ROUNDS - 1:
            used += one.descend(share)
            break
        used += one.anneal(share, begin=number / (ROUNDS - 1), end=(number + 1) / (ROUNDS - 1))
        per_round_s = budget.seconds - round_s
        if per_round_s * (ROUNDS - 1 - number) > left_s:  # so that it cools down in time, rather than stop hot
            proposals = max(1, int(proposals * left_s / (per_round_s * (ROUNDS - number))))
    return one.slots_GP(), used


def _default_proposals(problem: PlacementProblem, parts: int, longer: int) -> int:
    """Proposals of a layer in one of so many searches, without limits; half of `longer` where there are many slots."""
    enough = PROPOSALS_PER_SLOT * int(problem.slots_G.sum()) * longer
    return max(1, min(enough, MOST_PROPOSALS * max(1, longer // 2) // (problem.wanted.layers * parts)))


def _candidates(problem: PlacementProblem, *, full: bool, even: bool = False) -> list[Candidate]:
    """All weights with every slot in use.

    Then half of the spare slots, and none where choices travel by themselves.

    `even`: heavier weights in their place.
    """
    experts, slots = problem.wanted.experts, int(problem.slots_G.sum())
    by_choice = LayerCost.of(problem).copy_s == 0  # then weights change nothing
    weights: tuple[float, ...] = EVEN_WEIGHTS if even else BALANCE_WEIGHTS
    weights, spare = (weights[:1], (0.5, 0.0)) if by_choice else (weights, (0.5,))
    every = [Candidate(balance_weight=weight, replicas=slots, full=full) for weight in weights]
    if full or even:
        return every
    fewer = {experts + int(part * problem.spare_slots) for part in spare} - {slots}
    return every + [Candidate(balance_weight=weights[-1], replicas=number) for number in sorted(fewer, reverse=True)]


def _simple_plans(problem: PlacementProblem, objective: Objective, budget: Budget, seed: int) -> list[Estimate]:
    solvers: tuple[Solver, ...] = (Balance(), Eplb(), Contiguous())
    found: list[Estimate] = []
    for solver in solvers:
        if solver.supports(problem) is None and not (found and budget.seconds_left <= 0):
            found.append(objective.estimate(solver.solve(problem, objective, budget.quiet(), seed=seed).slots_LGP))
    return found


def _reserved_seconds(problem: PlacementProblem, objective: Objective, budget: Budget) -> float:
    """Seconds on the clock to keep for timing the finalists; measured only where a time limit asks for it."""
    if budget.limit.time_s is None or budget.seconds_left <= 0:
        return 0.0
    begin = time.monotonic()
    objective.step_s(problem.any_plan().slots_DLGP[0])
    return min(1.2 * FINALISTS * (time.monotonic() - begin), budget.seconds_left / 2)


def _search_longer(
    problem: PlacementProblem, objective: Objective, best: Candidate, budget: Budget, seed: int, reserve_s: float
) -> list[Estimate]:
    """Search again, longer each time, where a time limit leaves time."""
    found, longer = [], 4
    while budget.limit.time_s is not None and budget.seconds_left > reserve_s and longer <= LONGEST:
        seconds = budget.seconds_left - reserve_s
        slots_LGP = search(problem, best, budget, seed=seed + longer, longer=longer, seconds=seconds)
        found.append(objective.estimate(slots_LGP))
        longer *= 4
    return found
