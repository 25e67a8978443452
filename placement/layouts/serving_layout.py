"""One layout of a serving instance: who shares what, how tokens travel, and how many sequences a rank has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from moecast.placement.layouts.degrees import AttentionDegrees
from moecast.sim.degrees import Degrees
from moecast.sim.whole import whole

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import DispatchMode, Plan

SEQUENTIAL = "sequential"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ServingLayout(AttentionDegrees):
    """A layout of one instance: its GPUs hold the model once, in one EP group for each pipeline stage.

    Copies of an instance stand beside each other and share nothing, so an instance says all there is to say.

    Parameters
    ----------
    tp, cp, dp, pp, mapping
        As of `AttentionDegrees`.
    etp
        Ranks that share each expert by width; what it leaves of a stage's ranks is the EP group.
    sequence_parallel, dispatch, schedule, microbatches
        As in a `Plan`.
    spare_slots
        Redundant slots of each rank, beside as few as hold the experts.
    batch
        Decode: sequences in flight on each data-parallel rank. Prefill: tokens of prompts on each.

    Raises
    ------
    ValueError
        A degree that is no whole number of at least 1, or that does not divide the ranks of a stage.
    """

    etp: int = 1
    sequence_parallel: bool = True
    dispatch: DispatchMode | None = None
    schedule: str = SEQUENTIAL
    microbatches: int = 1
    spare_slots: int = 0
    batch: int = 1

    def __post_init__(self) -> None:
        degrees = (self.tp, self.cp, self.dp, self.pp, self.etp, self.microbatches, self.batch)
        if not all(type(degree) is int and 0 < degree < 2**31 for degree in degrees):  # a search makes many
            for name in ("tp", "cp", "dp", "pp", "etp", "microbatches", "batch"):
                whole(name, getattr(self, name))
        whole("spare_slots", self.spare_slots, least=0)
        if self.ranks_of_stage % self.etp:
            raise ValueError(f"etp = {self.etp}: does not divide the {self.ranks_of_stage} ranks of a pipeline stage")

    @property
    def ep(self) -> int:
        """Ranks of the EP group."""
        return self.ranks_of_stage // self.etp

    @property
    def experts_are_summed(self) -> bool:
        """Whether nothing is dispatched: ranks that share all tokens add their experts' sums up."""
        return not self.sequence_parallel and self.ep * self.etp == self.tp and not (self.ep > 1 and self.dispatch)

    @property
    def sequences(self) -> int:
        """Sequences, or tokens of prompts, of a whole instance."""
        return self.batch * self.dp

    def slots_per_rank(self, experts: int) -> int:
        """Slots of each rank and layer."""
        return -(-experts // self.ep) + self.spare_slots

    def plan(self, model: ModelShape) -> Plan:
        """The plan with experts in order; redundant slots are empty until a solver fills them.

        Raises
        ------
        ValueError
            The slots cannot hold the model's experts.
        """
        degrees = Degrees(tp=self.tp, cp=self.cp, pp=self.pp, ep=self.ep, etp=self.etp)
        plan = degrees.contiguous(
            model.shape_LEK, model.moe_layer_ids, ranks=self.gpus, slots_per_rank=self.slots_per_rank(model.experts)
        )
        return plan.with_(
            gpu_of_rank=self.gpu_of_rank,
            sequence_parallel=self.sequence_parallel,
            dispatch=self.dispatch,
            schedule=self.schedule,
            microbatches=self.microbatches,
        )

    def name(self, *, prompts: bool = False) -> str:
        """The layout in one line, what is usual left out: ``attention TP4 x DP2, experts EP8, batch 32``.

        `prompts`: it computes prompts, whose batch is counted in tokens.
        """
        degrees = ((name, getattr(self, name.lower())) for name in ("TP", "CP", "DP", "PP"))
        attention = " x ".join(f"{name}{value}" for name, value in degrees if value > 1) or "one GPU"
        experts = f"EP{self.ep}" if self.ep > 1 else ""
        experts += f"{' x ' if experts else ''}ETP{self.etp}" if self.etp > 1 else ""
        parts = [f"attention {attention}", f"experts {experts or 'whole'}"]
        parts += [self.dispatch] if self.dispatch else []
        parts += ["sequence parallel"] if self.sequence_parallel and self.tp > 1 else []
        parts += [self.schedule] if self.schedule != SEQUENTIAL else []
        parts += [f"{self.microbatches} microbatches"] if self.microbatches > 1 else []
        parts += [f"{self.spare_slots} redundant slots a rank"] if self.spare_slots else []
        parts += self.mapped
        return ", ".join([*parts, f"{self.batch:,} tokens a rank" if prompts else f"batch {self.batch}"])


way_of: Callable[[ServingLayout], tuple[Any, ...]] = attrgetter(
    "tp", "cp", "dp", "pp", "etp", "sequence_parallel", "dispatch", "schedule", "microbatches", "spare_slots"
)
"""All of a layout but its batch: what searches over many batches group by."""
