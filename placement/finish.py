"""From what a solver gave back to slots that can be judged: checked, filled where engines want it, and explained.

Axes: L MoE layer, G rank, P slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.placement.fill import fill_slots
from moecast.placement.near_requests import near_requests
from moecast.placement.notes import copies_note, filled_note, with_note
from moecast.placement.problem import PlacementProblem
from moecast.placement.solver import checked_slots

if TYPE_CHECKING:
    from moecast.placement.solver import SlotProblem, Solved

Int32 = npt.NDArray[np.int32]


def check_taken(solver: str, refusal: str | None) -> None:
    """Fail where a solver says that a problem is not for it.

    Raises
    ------
    MoecastError
        Why not, in the solver's words.
    """
    if refusal is not None:
        raise MoecastError(f"this problem is not for it: {refusal}", field="solver", value=solver)


def finished(solved: Solved, problem: SlotProblem, solver: str, *, by_choice: bool, fill: bool) -> tuple[Int32, str]:
    """Give the slots that a solver found, and what a reader should know of them.

    Parameters
    ----------
    by_choice
        A copy travels for each choice, so that a placement can save few of them.
    fill
        Empty slots get replicas, since serving engines have none.

    Raises
    ------
    MoecastError
        It gave back no slots of the problem's shape.
    """
    slots_LGP, note = checked_slots(solved, problem, solver), solved.note
    if isinstance(problem, PlacementProblem) and problem.workload.request_placement == "topic":
        slots_LGP = near_requests(slots_LGP, problem)
    if by_choice:
        note = with_note(note, copies_note(problem.wanted.replica_rule))
    if fill:
        slots_LGP, count = fill_slots(slots_LGP, problem.load_LE, problem.slots_G)
        note = with_note(note, filled_note(count))
    return slots_LGP, note
