"""What a solver is.

Axes: L MoE layer, G rank, P slot of a rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moecast.placement.limit import Budget
    from moecast.placement.objective import Objective
    from moecast.placement.problem import PlacementProblem

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solved:
    """What a solver found: a legal placement, the same for every EP group.

    Parameters
    ----------
    slots_LGP
        The expert in each slot, -1 where empty.
    note
        What a reader should know of how it was found; empty where there is nothing to say.
    """

    slots_LGP: Int32
    note: str = ""


class Solver(Protocol):
    """A way to find a placement; its docstring says how."""

    @property
    def name(self) -> str:
        """What the command line calls it."""

    def supports(self, problem: PlacementProblem) -> str | None:
        """Say in one clause why it cannot take a problem; None: it can."""

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:
        """Find a placement within the budget; the same work limit and seed find the same one."""
