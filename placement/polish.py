"""The last steps of a search, in step seconds: neighbours of the best plan are estimated until none is faster.

Small problems only: an estimate costs as much as thousands of moves of the annealing, whose linear
cost leaves out who waits for whom, latencies and whole tiles, which is where small cases differ.
Layers add up in the estimate, so that one call tries a neighbour of each layer.

Axes: L MoE layer, G rank, P slot of a rank, E expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.finalists import DOUBT
from moecast.sim.slots import EMPTY

if TYPE_CHECKING:
    from moecast.placement.estimate import Estimate
    from moecast.placement.limit import Budget
    from moecast.placement.objective import Objective
    from moecast.placement.problem import PlacementProblem

Int32 = npt.NDArray[np.int32]

MOST_SLOTS = 24
LEAST_GAIN = 1e-9  # of a step: smaller gains are rounding
MOST_TOKENS = 1 << 13  # of all layers of the held-out steps: what an estimate costs
MOST_TRIES = 400  # estimates; every one is of all layers
STARTS = 3  # plans to begin at
KEPT = 12  # of the plans met, the fastest
MOST_NEAR = 400  # neighbours of all layers, up to which the last plan's are looked at one by one
MOST_TIMED = 60  # of them timed: each takes as long as tens of estimates


def is_small(problem: PlacementProblem) -> bool:
    """Whether a plan can be polished within a second or so."""
    tokens = sum(step.n_tokens for step in problem.held_out[:8]) * problem.wanted.layers
    return int(problem.slots_G.sum()) <= MOST_SLOTS and tokens <= MOST_TOKENS


def polished(
    problem: PlacementProblem, objective: Objective, starts: Sequence[Estimate], budget: Budget, *, full: bool
) -> list[Estimate]:
    """Go from the fastest of some plans to faster neighbours until there is none.

    Returns the fastest plans met.

    Parameters
    ----------
    starts
        Plans to begin at.
    full
        No slot is left empty that was not.
    """
    met: list[Estimate] = []
    for start in _unlike(starts)[:STARTS]:
        met += _descent(problem, objective, start, budget, full=full)
    return _unlike(met)[:KEPT]


def _unlike(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Each placement once, the fastest first."""
    once = {np.sort(estimate.slots_LGP, axis=2).tobytes(): estimate for estimate in estimates}
    return sorted(once.values(), key=lambda estimate: estimate.step_s)


def _descent(
    problem: PlacementProblem, objective: Objective, start: Estimate, budget: Budget, *, full: bool
) -> list[Estimate]:
    slots_LGP, layer_s_L, met = start.slots_LGP.copy(), start.layer_s_L.copy(), [start]
    near = [neighbours(table, problem.slots_G, problem.wanted.experts, full=full) for table in slots_LGP]
    at_L = np.zeros(len(near), np.int64)  # neighbours tried since the layer's last gain
    for _ in range(MOST_TRIES):
        tried_L = np.array([at < len(of_layer) for at, of_layer in zip(at_L, near, strict=True)])
        if not tried_L.any() or budget.seconds_left <= 0:
            break
        trial_LGP = slots_LGP.copy()
        for layer in np.flatnonzero(tried_L):
            trial_LGP[layer] = near[layer][at_L[layer]]
        found = objective.estimate(trial_LGP)
        met.append(found)
        at_L += tried_L
        for layer in np.flatnonzero(tried_L & (found.layer_s_L < layer_s_L)):
            slots_LGP[layer], layer_s_L[layer], at_L[layer] = trial_LGP[layer], found.layer_s_L[layer], 0
            near[layer] = neighbours(slots_LGP[layer], problem.slots_G, problem.wanted.experts, full=full)
    return [objective.estimate(slots_LGP), *met]


def settled(problem: PlacementProblem, objective: Objective, slots_LGP: Int32, budget: Budget, *, full: bool) -> Int32:
    """Time neighbours of a plan, those first that are estimated fastest, and go to one that is faster, until none is.

    Plans that the estimate cannot tell apart may differ by more than a percent.
    """
    best_s, left = np.inf, MOST_TIMED
    while left > 0 and budget.seconds_left > 0:
        near = _near(problem, slots_LGP, full=full)
        if len(near) > MOST_NEAR:
            break
        best_s = min(best_s, objective.expected_s(slots_LGP))
        for trial in _estimated(objective, slots_LGP, near, budget):
            if left == 0 or budget.seconds_left <= 0:
                break
            left -= 1
            if objective.expected_s(trial.slots_LGP) < best_s * (1 - LEAST_GAIN):
                slots_LGP = trial.slots_LGP
                break
        else:
            break
    return slots_LGP


def _estimated(objective: Objective, slots_LGP: Int32, near: Sequence[Int32], budget: Budget) -> list[Estimate]:
    """Neighbours that the estimate cannot tell from a plan, or puts before it, the fastest first."""
    most_s, found = (1 + DOUBT) * objective.estimate(slots_LGP).step_s, []
    for trial_LGP in near:
        if budget.seconds_left <= 0:
            break
        found.append(objective.estimate(trial_LGP))
    return [trial for trial in _unlike(found) if trial.step_s <= most_s]


def _near(problem: PlacementProblem, slots_LGP: Int32, *, full: bool) -> list[Int32]:
    """Plans in which one layer is a neighbour of what it is."""
    near = []
    for layer, slots_GP in enumerate(slots_LGP):
        for table in neighbours(slots_GP, problem.slots_G, problem.wanted.experts, full=full):
            near.append(slots_LGP.copy())
            near[-1][layer] = table
    return near


def neighbours(slots_GP: Int32, slots_G: Int32, experts: int, *, full: bool) -> list[Int32]:
    """All legal placements of a layer in which a slot has another expert or none, or two slots or ranks are exchanged.

    Whole ranks, since which rank holds what matters, too: tokens come from ranks.
    """
    places = [(g, p) for g in range(len(slots_G)) for p in range(slots_G[g])]
    exchanged = [
        _with(slots_GP, {one: slots_GP[other], other: slots_GP[one]})
        for index, one in enumerate(places)
        for other in places[:index]
        if one[0] != other[0] and slots_GP[one] != slots_GP[other]
    ]
    given = [
        _with(slots_GP, {place: expert})
        for place in places
        for expert in range(EMPTY, experts)
        if expert != slots_GP[place] and not (full and expert == EMPTY)
    ]
    ranks = [
        _with(
            slots_GP,
            {(g, p): slots_GP[h, p] for p in range(slots_G[g])} | {(h, p): slots_GP[g, p] for p in range(slots_G[h])},
        )
        for g in range(len(slots_G))
        for h in range(g)
        if slots_G[g] == slots_G[h]
    ]
    return [table for table in exchanged + given + ranks if _legal(table, experts)]


def _with(slots_GP: Int32, other: dict[tuple[int, int], int]) -> Int32:
    table = slots_GP.copy()
    for place, expert in other.items():
        table[place] = expert
    return table


def _legal(slots_GP: Int32, experts: int) -> bool:
    """Every expert is somewhere, and none twice on a rank."""
    rows = [row[row != EMPTY].tolist() for row in slots_GP]
    return len({e for row in rows for e in row}) == experts and all(len(set(row)) == len(row) for row in rows)
