"""Experts in order: what engines do by default.

Axes: L MoE layer, G rank, P slot of a rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moecast.placement.solver import Solved
from moecast.sim.plan import Plan

if TYPE_CHECKING:
    from moecast.placement.limit import Budget
    from moecast.placement.objective import Objective
    from moecast.placement.problem import PlacementProblem
    from moecast.placement.solver import SlotProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class Contiguous:
    """Experts in order, as evenly many to a rank as they divide; spare slots stay empty."""

    name: str = "contiguous"

    def supports(self, problem: SlotProblem) -> str | None:
        """Take problems whose ranks all have room for their share."""
        share = -(-problem.wanted.experts // problem.wanted.ep)
        return None if problem.slots_G.min() >= share else f"needs {share} slots on every rank"

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:  # noqa: ARG002
        """Deal the experts out in order."""
        return self.spread(problem)

    def spread(self, problem: SlotProblem) -> Solved:
        """Deal the experts out in order."""
        wanted = problem.wanted
        plan = Plan.contiguous(
            layers=wanted.layers,
            experts=wanted.experts,
            choices=wanted.choices,
            ep=wanted.ep,
            slots_per_rank=wanted.max_slots,
        )
        return Solved(slots_LGP=np.array(plan.slots_DLGP[0]))
