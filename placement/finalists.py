"""Which of the plans that a search has found is taken: the best of each layer, and the fastest of those that are close.

Axes: L MoE layer, G rank, P slot of a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.certificates.fullest_rank import rank_load_LG

if TYPE_CHECKING:
    from moecast.placement.estimate import Estimate
    from moecast.placement.limit import Budget
    from moecast.placement.objective import Objective
    from moecast.placement.problem import PlacementProblem

Int32 = npt.NDArray[np.int32]

DOUBT = 0.04  # plans whose estimates differ by less are timed; the estimate is within 0.03 of fluid
FINALISTS = 3
SEARCHING = 0.9  # of the progress that is told; the rest is timing


def balance_L(problem: PlacementProblem, slots_LGP: Int32) -> npt.NDArray[np.float64]:
    """Balance of each layer, all tokens that the plan is made on being one step and replicas sharing evenly."""
    load_LG = rank_load_LG(slots_LGP, problem.load_LE)
    return np.asarray(load_LG.mean(axis=1) / np.maximum(load_LG.max(axis=1), 1e-300))


def layer_by_layer(estimates: Sequence[Estimate]) -> Int32:
    """For each layer the placement under which it takes least: the estimate is a sum over layers."""
    best_L = np.argmin([estimate.layer_s_L for estimate in estimates], axis=0)
    return _mixed(estimates, best_L)


def even_enough(estimates: Sequence[Estimate], problem: PlacementProblem, at_least: float) -> Int32:
    """For each layer the fastest placement whose balance is at least so much; where there is none, the most even."""
    balance_NL = np.array([balance_L(problem, estimate.slots_LGP) for estimate in estimates])
    seconds_NL = np.where(balance_NL >= at_least, [estimate.layer_s_L for estimate in estimates], np.inf)
    reached_L = np.isfinite(seconds_NL).any(axis=0)
    return _mixed(estimates, np.where(reached_L, seconds_NL.argmin(axis=0), balance_NL.argmax(axis=0)))


def _mixed(estimates: Sequence[Estimate], best_L: npt.NDArray[np.int64]) -> Int32:
    return np.stack([estimates[best].slots_LGP[layer] for layer, best in enumerate(best_L)])


def fastest(
    found: Sequence[Estimate],
    simple: Sequence[Estimate],
    objective: Objective,
    budget: Budget,
    *,
    most: int = FINALISTS,
) -> Int32:
    """Time at most so many of those that the estimate cannot tell from the best, best first, while there is time.

    The one that is expected to be fastest over more steps than were timed wins, unless one of
    `simple` is faster on those that were.
    """
    unique = {estimate.slots_LGP.tobytes(): estimate for estimate in (*found, *simple)}
    order = sorted(unique.values(), key=lambda estimate: estimate.step_s)
    close = [estimate for estimate in order if estimate.step_s <= (1 + DOUBT) * order[0].step_s][:most]
    if budget.seconds_left <= 0:
        return close[0].slots_LGP
    timed: list[Estimate] = []
    for estimate in close:
        begin = budget.seconds
        objective.step_s(estimate.slots_LGP)
        timed.append(estimate)
        budget.tell("timing the finalists", SEARCHING + (1 - SEARCHING) * len(timed) / len(close))
        if budget.seconds_left < budget.seconds - begin:
            break
    best = min(timed, key=lambda estimate: objective.expected_s(estimate.slots_LGP))
    plain = {estimate.slots_LGP.tobytes() for estimate in simple}
    if objective.problem.robust:
        return best.slots_LGP
    faster = [estimate for estimate in timed if estimate is best or estimate.slots_LGP.tobytes() in plain]
    return min(faster, key=lambda estimate: objective.step_s(estimate.slots_LGP)).slots_LGP
