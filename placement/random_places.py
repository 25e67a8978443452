"""Experts anywhere: the baseline that says what luck does.

Axes: L MoE layer, E expert, G rank, P slot of a rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moecast.placement.solver import Solved

if TYPE_CHECKING:
    from moecast.placement.limit import Budget
    from moecast.placement.objective import Objective
    from moecast.placement.problem import PlacementProblem
    from moecast.placement.solver import SlotProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomPlaces:
    """Every expert on a random slot of its own, layer by layer; spare slots stay empty."""

    name: str = "random"

    def supports(self, problem: SlotProblem) -> str | None:  # noqa: ARG002
        """Take every problem."""
        return None

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:  # noqa: ARG002
        """Draw a slot for each expert."""
        rng = np.random.default_rng(seed)
        slots_LGP, experts = problem.empty_slots_LGP(), problem.wanted.experts
        rank_S = np.repeat(np.arange(problem.wanted.ep), problem.slots_G)
        slot_S = np.concatenate([np.arange(count) for count in problem.slots_G])
        for slots_GP in slots_LGP:
            chosen = rng.permutation(len(rank_S))[:experts]
            slots_GP[rank_S[chosen], slot_S[chosen]] = np.arange(experts)
        return Solved(slots_LGP=slots_LGP)
