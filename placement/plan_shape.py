"""What is asked of a plan before anybody knows which expert stands where: groups, slots and how it runs.

Axes: L MoE layer, E expert, K choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from moecast.errors import MoecastError
from moecast.sim.degrees import Degrees
from moecast.sim.plan import DispatchMode, Plan, ReplicaRule
from moecast.sim.schedules import find_schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanShape:
    """Groups, slots, and what a search takes as given.

    Parameters
    ----------
    ep, slots_per_rank
        Ranks of an EP group (None: all there are) and slots of each rank (None: as few as hold the experts).
    tp
        Consecutive ranks that share their tokens.
    degrees
        The layout's other degrees.
    sequence_parallel, context_exchange, context_split, dispatch, replica_rule, schedule
        How the plan runs.

    Raises
    ------
    MoecastError
        A rule that no solver makes plans for, or a schedule that there is not.
    """

    ep: int | None = None
    tp: int = 1
    degrees: Degrees = field(default_factory=Degrees)
    sequence_parallel: bool = True
    context_exchange: str = "ring"
    context_split: str = "zig-zag"
    slots_per_rank: int | None = None
    dispatch: DispatchMode | None = None
    replica_rule: ReplicaRule = "round_robin"
    schedule: str = "sequential"

    def __post_init__(self) -> None:
        if self.replica_rule == "weights":
            raise MoecastError("no solver makes replica weights: use one of the other rules", field="replica_rule")
        find_schedule(self.schedule)

    def contiguous(self, sizes_LEK: tuple[int, int, int], layer_ids: tuple[int, ...] | None, *, ranks: int) -> Plan:
        """Lay EP groups over all ranks, with experts in order.

        Raises
        ------
        MoecastError
            Degrees that do not divide the ranks, or slots that cannot hold the experts.
        """
        degrees = Degrees(**{**self.degrees.given, "ep": self.ep, "tp": self.tp})
        try:
            degrees.layout(ranks)
        except ValueError as error:
            raise MoecastError(str(error)) from error
        try:
            plan = degrees.contiguous(sizes_LEK, layer_ids, ranks=ranks, slots_per_rank=self.slots_per_rank)
        except ValueError as error:
            raise MoecastError(str(error), field="slots_per_rank", value=self.slots_per_rank) from error
        schedule = find_schedule(self.schedule).name
        try:
            return plan.with_(
                dispatch=self.dispatch, replica_rule=self.replica_rule, schedule=schedule,
                sequence_parallel=self.sequence_parallel, context_exchange=self.context_exchange,
                context_split=self.context_split,
            )  # fmt: skip
        except ValueError as error:
            raise MoecastError(str(error)) from error
