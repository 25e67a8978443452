"""What is asked of a plan before anybody knows which expert stands where: groups, slots and how it runs.

Axes: L MoE layer, E expert, K choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

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
        Ranks of an EP group (None: all there are) and slots of each rank (None: as few as hold the
        experts).
    slots
        Instead of `slots_per_rank`: slots of an EP group in each layer, as evenly many to a rank as
        they go (288 on 64 ranks: 4 and 5 in turns, so that every host has as many).
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
    slots: int | None = None
    dispatch: DispatchMode | None = None
    replica_rule: ReplicaRule = "round_robin"
    schedule: str = "sequential"

    def __post_init__(self) -> None:
        if self.replica_rule == "weights":
            raise MoecastError("no solver makes replica weights: use one of the other rules", field="replica_rule")
        find_schedule(self.schedule)
        if self.slots is not None and self.slots_per_rank is not None:
            rule = f"say how many in all, or {self.slots_per_rank} on each rank, not both"
            raise MoecastError(rule, field="slots", value=self.slots)

    def contiguous(self, sizes_LEK: tuple[int, int, int], layer_ids: tuple[int, ...] | None, *, ranks: int) -> Plan:
        """Lay EP groups over all ranks, with experts in order.

        Raises
        ------
        MoecastError
            Degrees that do not divide the ranks, or slots that cannot hold the experts.
        """
        degrees = Degrees(**{**self.degrees.given, "ep": self.ep, "tp": self.tp})
        try:
            layout = degrees.layout(ranks)
        except ValueError as error:
            raise MoecastError(str(error)) from error
        counts_G = None if self.slots is None else self._dealt(layout.ep, sizes_LEK[1])
        per_rank = self.slots_per_rank if counts_G is None else max(counts_G)
        try:
            plan = degrees.contiguous(sizes_LEK, layer_ids, ranks=ranks, slots_per_rank=per_rank)
        except ValueError as error:
            raise MoecastError(str(error), field="slots_per_rank", value=self.slots_per_rank) from error
        schedule = find_schedule(self.schedule).name
        try:
            return plan.with_(
                dispatch=self.dispatch,
                replica_rule=self.replica_rule,
                schedule=schedule,
                sequence_parallel=self.sequence_parallel,
                context_exchange=self.context_exchange,
                context_split=self.context_split,
                slots_per_rank=counts_G,
            )
        except ValueError as error:
            raise MoecastError(str(error)) from error

    def _dealt(self, ranks: int, experts: int) -> tuple[int, ...]:
        """The slots of each rank of an EP group."""
        assert self.slots is not None
        if self.slots < experts:
            raise MoecastError(f"cannot hold {experts} experts", field="slots", value=self.slots)
        upto = [rank * self.slots // ranks for rank in range(ranks + 1)]
        return tuple(end - begin for begin, end in pairwise(upto))
