"""Replicate, longest first, swap: the best balance of load, whatever travels.

Axes: L MoE layer, G rank, P slot of a rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moecast.placement.cost import LayerCost
from moecast.placement.layer_search import LayerSearch
from moecast.placement.load_search import balance_layer
from moecast.placement.solver import Solved

if TYPE_CHECKING:
    from moecast.placement.limit import Budget
    from moecast.placement.objective import Objective
    from moecast.placement.problem import PlacementProblem
    from moecast.placement.solver import SlotProblem

PROPOSALS_PER_LAYER = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Spare slots to the hottest experts, the heaviest replicas first to the lightest ranks, then swaps.

    Swaps lower the mean over windows of the fullest rank's load until none does. Copies are not
    looked at. Unlike EPLB it gives no rank two replicas of an expert, and counts an expert that is
    hot in some steps for more.
    """

    name: str = "balance"

    def supports(self, problem: SlotProblem) -> str | None:  # noqa: ARG002
        """Take every problem."""
        return None

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:  # noqa: ARG002
        """Balance each layer by itself."""
        by_load = LayerCost(choice_s=1.0)
        slots_LGP = problem.empty_slots_LGP()
        for layer in range(problem.wanted.layers):
            search = LayerSearch(problem, layer, cost=by_load, replicas=int(problem.slots_G.sum()), seed=seed)
            if budget.seconds_left > 0:
                search.descend(PROPOSALS_PER_LAYER)
            slots_LGP[layer] = search.slots_GP()
            budget.tell("balancing", (layer + 1) / problem.wanted.layers)
        return Solved(slots_LGP=np.asarray(slots_LGP))

    def spread(self, problem: SlotProblem) -> Solved:
        """Balance each layer by itself, all that was counted being one window."""
        slots_LGP = problem.empty_slots_LGP()
        for layer, load_E in enumerate(problem.load_LE):
            slots_LGP[layer] = balance_layer(load_E, problem.slots_G, problem.domain_G, proposals=PROPOSALS_PER_LAYER)
        return Solved(slots_LGP=slots_LGP)
