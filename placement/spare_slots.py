"""How many redundant slots are worth their memory: the same steps, with one or two slots more on each rank.

Plans are those of `moecast.placement.balance` for each number, so that what differs is the slots
alone.

Axes: S step, D EP group, L MoE layer, G rank, P slot of a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.placement.balance import Balance
from moecast.placement.limit import Budget
from moecast.placement.objective import Objective
from moecast.placement.problem import PlacementProblem
from moecast.sim.memory import memory_by_part
from moecast.sim.plan import Plan
from moecast.sim.slots import EMPTY

Float = npt.NDArray[np.float64]

TRIED = (0, 1, 2)  # slots of each rank beyond those that hold the experts


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareSlots:
    """What steps take with so many slots more on each rank.

    Parameters
    ----------
    spare
        Slots of a rank beyond as few as hold the experts.
    memory_bytes
        Of one such slot on a GPU, over all its layers.
    step_S
        Seconds of each judged step; None: they do not fit.
    """

    spare: int
    memory_bytes: int
    step_S: Float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        step_s = None if self.step_S is None else float(self.step_S.mean())
        return {"spare": self.spare, "memory_bytes": self.memory_bytes, "step_s": step_s}


def try_spare_slots(problem: PlacementProblem, spare: Sequence[int] = TRIED) -> list[SpareSlots]:
    """Balance the experts with each number of spare slots, and time the judged steps."""
    fewest = -(-problem.wanted.experts // problem.wanted.ep)
    return [_tried(problem, fewest, number) for number in spare]


def _tried(problem: PlacementProblem, fewest: int, spare: int) -> SpareSlots:
    slots_bytes = _slots_bytes(problem, fewest + spare) - _slots_bytes(problem, fewest)
    size = slots_bytes // max(spare, 1)
    try:
        other = replace(problem, wanted=with_slots(problem.wanted, fewest + spare))
    except MoecastError:  # the GPU's memory
        return SpareSlots(spare=spare, memory_bytes=size, step_S=None)
    objective = Objective(other)
    slots_LGP = Balance().solve(other, objective, Budget()).slots_LGP
    step_S = np.array([objective.one_step_s(slots_LGP, index) for index in range(len(objective.judged))])
    return SpareSlots(spare=spare, memory_bytes=size, step_S=step_S)


def _slots_bytes(problem: PlacementProblem, per_rank: int) -> int:
    plan, hardware = with_slots(problem.wanted, per_rank), problem.cluster.hardware
    return memory_by_part(problem.model, plan, problem.workload, hardware, steps=problem.steps)["slots"]


def with_slots(plan: Plan, per_rank: int) -> Plan:
    """Give a plan so many slots on each rank, with experts in order."""
    slots_GP = np.full((plan.ep, per_rank), EMPTY, np.int32)
    fewest = -(-plan.experts // plan.ep)
    expert = np.arange(plan.experts)
    slots_GP[expert // fewest, expert % fewest] = expert
    slots_DLGP = np.broadcast_to(slots_GP, (plan.groups, plan.layers, *slots_GP.shape))
    return replace(plan, slots_DLGP=slots_DLGP, slots_per_rank=None, replica_weights_DLGP=None)
