"""What ranks that hold the same parameters send each other in a training step: gradients, and parameters in parts.

Source: ZeRO (arXiv 1910.02054) and Megatron-LM's distributed optimizer, which is its first level:
gradients are reduced and scattered once a step, each rank updates its part, and the parameters are
gathered. Without it (level 0) gradients are all-reduced. Level 2 keeps only its part of the
gradients, so it reduces them for every microbatch; level 3 keeps only its part of the parameters
too, and gathers each layer's before its forward and before its backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moecast.sim.training.precision import Precision
from moecast.sim.training.shard import Held, Shard

Operation = Literal["all-reduce", "reduce-scatter", "all-gather"]
Group = Literal["dense", "expert", "tensor"]
When = Literal["forward", "backward", "step"]

ZERO_LEVELS = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """One collective over the ranks that hold the same parameters of one layer.

    Parameters
    ----------
    operation
        What is done.
    group
        Over which ranks: `dense` the data and context parallel ones, `expert` the expert data
        parallel ones, `tensor` those of tensor parallelism (gradients of what each of them has
        whole).
    layer
        Hidden layer; -1 the embedding, `n_layers` the LM head.
    when
        Before or in the layer's `forward` pass, after or before its `backward` pass, or around the
        optimizer's `step`.
    per_microbatch
        Whether each microbatch does it, or the step once.
    bytes
        Of the whole on each rank: what goes into a reduce-scatter or all-reduce, what comes out of
        an all-gather.
    """

    operation: Operation
    group: Group
    layer: int
    when: When
    per_microbatch: bool
    bytes: float

    def sent_bytes(self, ranks: int) -> float:
        """Bytes that each of the group's ranks sends at least: (n - 1) / n of the whole, twice that to all-reduce."""
        passes = 2 if self.operation == "all-reduce" else 1
        return passes * self.bytes * (ranks - 1) / ranks


def reductions(
    shard: Shard, precision: Precision, *, zero: int = 1, sequence_parallel: bool = True
) -> tuple[Reduction, ...]:
    """List the collectives of a training step on the ranks of a shard, layer by layer.

    Of groups of one rank none.

    Raises
    ------
    ValueError
        There is no such level.
    """
    check_zero(zero)
    found: list[Reduction] = []
    for held in shard.held():
        found += _of_group("dense", held.layer, held.dense, shard.dense_ranks, precision, zero)
        found += _of_group("expert", held.layer, held.experts, shard.expert_ranks, precision, zero)
        if sequence_parallel and shard.tp > 1:
            found += _of_tensor_group(held, precision)
    return tuple(found)


def check_zero(zero: int) -> int:
    """`zero`, if it is a level.

    Raises
    ------
    ValueError
        It is not.
    """
    if zero not in ZERO_LEVELS:
        raise ValueError(f"zero = {zero!r}: one of {', '.join(map(str, ZERO_LEVELS))}")
    return zero


def _of_group(
    group: Group, layer: int, parameters: float, ranks: int, precision: Precision, zero: int
) -> Iterator[Reduction]:
    if ranks == 1 or not parameters:
        return
    gradients, weights = parameters * precision.gradient_bytes, parameters * precision.weight_bytes
    yield Reduction(
        operation="reduce-scatter" if zero else "all-reduce",
        group=group,
        layer=layer,
        when="backward",
        per_microbatch=zero >= 2,
        bytes=gradients,
    )
    if zero == 0:
        return
    gathers: tuple[When, ...] = ("forward", "backward") if zero == 3 else ("step",)
    for when in gathers:
        yield Reduction(
            operation="all-gather", group=group, layer=layer, when=when, per_microbatch=zero == 3, bytes=weights
        )


def _of_tensor_group(held: Held, precision: Precision) -> Iterator[Reduction]:
    """Sequence parallel ranks see other tokens, so the gradients of what each has whole are summed among them."""
    if held.whole:
        yield Reduction(
            operation="all-reduce",
            group="tensor",
            layer=held.layer,
            when="step",
            per_microbatch=False,
            bytes=held.whole * precision.gradient_bytes,
        )
