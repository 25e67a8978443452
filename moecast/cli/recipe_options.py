"""How a training job runs, in the words of the options: `moecast train`'s own, and section `training` of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from moecast.errors import MoecastError

if TYPE_CHECKING:
    from moecast.sim.training import Recipe

DRAWN = 2

Schedule = Annotated[
    str,
    typer.Option(
        "--schedule",
        help="Of the pipeline: gpipe, 1f1b, interleaved_1f1b, zb_h1, zb_v, dualpipe, dualpipe_v, "
        "or 1f1b_overlapped: with its all-to-all overlapped.",
    ),
]
Sequence = Annotated[int, typer.Option("--sequence", min=1, help="Tokens of a sequence.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Sequences of a step over all ranks (global).")]
Microbatch = Annotated[int, typer.Option("--microbatch", min=1, help="Sequences of a microbatch on a rank.")]
PrecisionName = Annotated[str, typer.Option("--precision", help="bf16 or fp8.")]
RecomputeName = Annotated[str, typer.Option("--recompute", help="none, selective or full.")]
OptimizerName = Annotated[str, typer.Option("--optimizer", help="adam or muon.")]
Zero = Annotated[
    int, typer.Option("--zero", min=0, max=3, help="What data-parallel ranks hold a part of only (1: Megatron's).")
]
HostLaunch = Annotated[
    str,
    typer.Option(
        "--host-launch",
        help="Time that a host takes to launch a direction of an MoE layer, beside what its GPU "
        "does: 4.8 ms was fitted on Megatron's steps on H100 without CUDA graphs "
        "(docs/accuracy.md).",
    ),
]
HostWait = Annotated[
    str,
    typer.Option(
        "--host-wait",
        help="Time that a rank waits before it sends, in each direction of an MoE layer: 6 ms was "
        "fitted for DeepEP over EFA at 2,048 tokens (docs/accuracy.md).",
    ),
]
OverlapGradReduce = Annotated[
    bool,
    typer.Option(
        "--overlap-grad-reduce",
        help="Reduce gradients beside the last microbatch's backward pass, bucket by bucket, as "
        "Megatron does with its option of this name.",
    ),
]
OverlapParamGather = Annotated[
    bool,
    typer.Option(
        "--overlap-param-gather",
        help="Gather parameters beside the first microbatch's forward pass likewise; wants --overlap-grad-reduce.",
    ),
]
BucketSize = Annotated[
    int | None,
    typer.Option(
        "--ddp-bucket-size",
        min=1,
        help="Parameters of a bucket at least (default: 40 million, or a million for each data-parallel rank).",
    ),
]
MoeSchedule = Annotated[
    str,
    typer.Option(
        "--moe-schedule",
        help="How MoE layers are gone through: sequential, or fsmoe:D: in D chunks, those between "
        "and inside domains at once; with --overlap-grad-reduce gradients go where chunks leave "
        "the network between domains idle.",
    ),
]
Drawn = Annotated[
    int, typer.Option("--drawn", min=1, help="Microbatches whose routing is drawn; the others repeat them.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedRecipe:
    """A recipe as a user writes it: names and numbers, which `recipe` checks."""

    schedule: Schedule = "1f1b"
    sequence: Sequence = 4096
    batch: Batch = 256
    microbatch: Microbatch = 1
    precision: PrecisionName = "bf16"
    recompute: RecomputeName = "none"
    optimizer: OptimizerName = "adam"
    zero: Zero = 1
    host_launch: HostLaunch = "0 s"
    host_wait: HostWait = "0 s"
    overlap_grad_reduce: OverlapGradReduce = False
    overlap_param_gather: OverlapParamGather = False
    ddp_bucket_size: BucketSize = None
    moe_schedule: MoeSchedule = "sequential"
    drawn: Drawn = DRAWN

    def recipe(self) -> Recipe:
        """What it names.

        Raises
        ------
        MoecastError
            No such precision, recomputation or optimizer; a wait that is no time; parameters
            gathered beside microbatches where gradients are not reduced so.
        """
        from moecast.sim.training import OPTIMIZERS, PRECISIONS, RECOMPUTES, HostWait, Recipe
        from moecast.units import parse

        optimizers = {known.name: known for known in OPTIMIZERS}
        for name, value, known in (
            ("--precision", self.precision, PRECISIONS),
            ("--recompute", self.recompute, RECOMPUTES),
            ("--optimizer", self.optimizer, optimizers),
        ):
            if value not in known:
                raise MoecastError(f"one of {', '.join(known)}", field=name, value=value)
        if self.overlap_param_gather and not (self.overlap_grad_reduce and self.zero):
            rule = "needs --overlap-grad-reduce, and --zero of at least 1"
            raise MoecastError(rule, field="--overlap-param-gather")
        return Recipe(
            sequence=self.sequence,
            batch=self.batch,
            microbatch=self.microbatch,
            precision=PRECISIONS[self.precision],
            recompute=RECOMPUTES[self.recompute],
            optimizer=optimizers[self.optimizer],
            zero=self.zero,
            host=HostWait(
                launch_s=parse(self.host_launch, "time", field="--host-launch"),
                fixed_s=parse(self.host_wait, "time", field="--host-wait"),
            ),
            overlap_grad_reduce=self.overlap_grad_reduce,
            overlap_param_gather=self.overlap_param_gather,
            bucket_parameters=self.ddp_bucket_size,
            moe_schedule=self.moe_schedule,
        )
