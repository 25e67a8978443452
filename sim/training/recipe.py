"""How a job trains: everything about a step that is neither the model nor where its ranks stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moecast.sim.schedules.fsmoe_training import degree_of
from moecast.sim.training.gradients import check_zero
from moecast.sim.training.host import NO_WAIT, HostWait
from moecast.sim.training.optimizer import ADAM, Optimizer
from moecast.sim.training.precision import BF16, Precision
from moecast.sim.training.recompute import NONE, Recompute


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a job trains.

    Parameters
    ----------
    sequence
        Tokens of a sequence.
    batch
        Sequences of a step, over all data-parallel ranks.
    microbatch
        Sequences of a microbatch on one data-parallel rank.
    precision, recompute, optimizer, zero
        Element types; what is computed again; what turns gradients into weights; what ranks hold a
        part of only.
    host
        What hosts take to launch a direction of an MoE layer, and what ranks wait for before they
        send.
    slower
        Times that kernels take of what they are priced at, exchanges and rings of attention apart:
        for engines whose kernels are others.
    overlap_grad_reduce, overlap_param_gather
        Whether gradients are reduced, and parameters gathered, beside microbatches
        (`moecast.sim.training.overlapped`).
    bucket_parameters
        Parameters whose gradients are reduced at once, at least; None: Megatron's default.
    moe_schedule
        How MoE layers are gone through: ``sequential``, or ``fsmoe:D`` in D chunks, a stream for
        each network (`moecast.sim.schedules.fsmoe_training`).

    Raises
    ------
    ValueError
        A number below 1, no such level of ZeRO, or parameters that are gathered beside microbatches
        where gradients are not reduced so, or where each rank has all of them.
    MoecastError
        No such order of MoE layers.
    """

    sequence: int
    batch: int
    microbatch: int = 1
    precision: Precision = BF16
    recompute: Recompute = NONE
    optimizer: Optimizer = ADAM
    zero: int = 1
    host: HostWait = NO_WAIT
    slower: float = 1.0
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    bucket_parameters: int | None = None
    moe_schedule: str = "sequential"

    def __post_init__(self) -> None:
        """Check ranges."""
        for field in ("sequence", "batch", "microbatch"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} = {getattr(self, field)}: must be at least 1")
        check_zero(self.zero)
        degree_of(self.moe_schedule)
        if not 1 <= self.slower < float("inf"):
            raise ValueError(f"slower = {self.slower}: must be at least 1")
        if self.bucket_parameters is not None and self.bucket_parameters < 1:
            raise ValueError(f"bucket_parameters = {self.bucket_parameters}: must be at least 1")
        if self.overlap_param_gather and not (self.overlap_grad_reduce and self.zero):
            raise ValueError("overlap_param_gather = True: needs overlap_grad_reduce, and zero of at least 1")

    def describe(self) -> dict[str, Any]:
        """What outputs say of it."""
        return {
            "sequence": self.sequence,
            "batch": self.batch,
            "microbatch": self.microbatch,
            "precision": self.precision.name,
            "recompute": self.recompute.name,
            "optimizer": self.optimizer.name,
            "zero": self.zero,
            "host_s": self.host.fixed_s,
            "host_launch_s": self.host.launch_s,
            "host_byte_s": self.host.byte_s,
            "host_copy_s": self.host.copy_s,
            "slower": self.slower,
            "overlap_grad_reduce": self.overlap_grad_reduce,
            "overlap_param_gather": self.overlap_param_gather,
            "bucket_parameters": self.bucket_parameters,
            "moe_schedule": self.moe_schedule,
        }

    def microbatches(self, dp: int) -> int:
        """Microbatches that each data-parallel rank goes through in a step.

        Raises
        ------
        ValueError
            The batch is no whole number of them.
        """
        count, rest = divmod(self.batch, dp * self.microbatch)
        if rest or not count:
            raise ValueError(
                f"batch = {self.batch}: must be a multiple of {dp * self.microbatch}: {dp} "
                f"data-parallel ranks take {self.microbatch} sequences at a time"
            )
        return count

    @property
    def tokens_of_microbatch(self) -> int:
        """Tokens of a microbatch on one data-parallel rank."""
        return self.microbatch * self.sequence
