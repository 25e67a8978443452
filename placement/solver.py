"""What a solver is, and one that needs no tokens.

Axes: L MoE layer, E expert, G rank, P slot of a rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.errors import MoecastError
from moecast.sim.slots import EMPTY

if TYPE_CHECKING:
    from moecast.placement.limit import Budget
    from moecast.placement.objective import Objective
    from moecast.placement.problem import PlacementProblem
    from moecast.sim.plan import Plan

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solved:
    """What a solver found: a legal placement, the same for every EP group.

    Parameters
    ----------
    slots_LGP
        The expert in each slot, -1 where empty.
    note
        What a reader of the plan should know of how it was found; empty where there is nothing to
        say.
    work
        How much work was done where no limit said how much, for who searches.
    """

    slots_LGP: Int32
    note: str = ""
    work: str = ""


def checked_slots(solved: Solved, problem: SlotProblem, name: str) -> Int32:
    """Give what a solver found in the type that loops read; whether it is legal the plan checks.

    Raises
    ------
    MoecastError
        It is no `Solved`, its slots are not whole numbers of the problem's shape, or hold experts
        that there are not.
    """
    if not isinstance(solved, Solved):
        raise MoecastError(f"{name} gave back {type(solved).__name__}, not a Solved", field="solver", value=name)
    shape = problem.empty_slots_LGP().shape
    try:
        slots_LGP: Int32 = whole_numbers(
            "slots_LGP", solved.slots_LGP, least=EMPTY, most=problem.wanted.experts - 1, shape=shape, dtype=np.int32
        )
    except (TypeError, ValueError) as error:
        rule = f"{name} gave back {error} (layers, ranks, slots of a rank)"
        raise MoecastError(rule, field="solver") from error
    return slots_LGP


class Solver(Protocol):
    """A way to find a placement; its docstring says how."""

    @property
    def name(self) -> str:
        """What the command line calls it."""

    def supports(self, problem: PlacementProblem) -> str | None:
        """Say in one clause why it cannot take a problem; None: it can."""

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:
        """Find a placement within the budget; the same work limit and seed find the same one."""


class SlotProblem(Protocol):
    """What a solver sees that places by load alone: the slots, and how often each expert is chosen."""

    @property
    def wanted(self) -> Plan:
        """Any plan with the wanted ranks and slots."""

    @property
    def slots_G(self) -> Int32:
        """Slots of each member of an EP group."""

    @property
    def domain_G(self) -> Int32:
        """Its domain."""

    @property
    def node_G(self) -> Int32:
        """Its host, counted from 0 over the hosts that the group stands on."""

    @property
    def n_domains(self) -> int:
        """How many domains the group stands in."""

    @property
    def expert_groups(self) -> int:
        """Groups of successive experts that the router limits a token to; 1 where it has none."""

    @property
    def load_LE(self) -> npt.NDArray[np.int64]:
        """Choices of each expert."""

    def empty_slots_LGP(self) -> Int32:
        """Make a table of empty slots to fill."""


class LoadSolver(Protocol):
    """A solver that places by load alone, so that a load table is enough for it."""

    @property
    def name(self) -> str:
        """What the command line calls it."""

    def supports(self, problem: SlotProblem) -> str | None:
        """Say in one clause why it cannot take a problem; None: it can."""

    def spread(self, problem: SlotProblem) -> Solved:
        """Find a placement; the same loads find the same one."""
