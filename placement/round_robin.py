"""Experts dealt like cards.

Axes: L MoE layer, G rank, P slot of a rank.
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
class RoundRobin:
    """Expert e on rank e mod G; spare slots stay empty."""

    name: str = "round-robin"

    def supports(self, problem: SlotProblem) -> str | None:
        """Take problems whose ranks all have room for their share."""
        share = -(-problem.wanted.experts // problem.wanted.ep)
        return None if problem.slots_G.min() >= share else f"needs {share} slots on every rank"

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:  # noqa: ARG002
        """Deal the experts round the ranks."""
        return self.spread(problem)

    def spread(self, problem: SlotProblem) -> Solved:
        """Deal the experts round the ranks."""
        slots_LGP = problem.empty_slots_LGP()
        expert_E = np.arange(problem.wanted.experts)
        slots_LGP[:, expert_E % problem.wanted.ep, expert_E // problem.wanted.ep] = expert_E
        return Solved(slots_LGP=slots_LGP)
