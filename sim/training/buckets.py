"""Buckets: the parameters of neighbouring layers whose gradients, or weights, travel as one beside a microbatch.

Megatron-Core's distributed data parallelism (`DistributedDataParallel`, `--overlap-grad-reduce`):
experts and all else have buffers of their own, which are cut into buckets from the model's end,
each as soon as it is large enough. Only the first rank of a pipeline cuts the first of its chunks;
elsewhere, where reducing falls into the bubble, a chunk is one bucket. Here a layer is never cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from moecast.sim.training.gradients import Group, Operation, Reduction

LEAST_PARAMETERS = 40_000_000
"""Of a bucket, or a million for each data-parallel rank, if that is more: Megatron's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Reductions of one kind over neighbouring layers.

    Parameters
    ----------
    group, operation, bytes
        As of `Reduction`.
    layer
        Its first layer, of a chunk's layers counted from 0: its gradients are there behind the
        layer's backward pass, its weights are wanted before the layer's forward pass.
    """

    group: Group
    operation: Operation
    bytes: float
    layer: int


def bucket_bytes(*, parameters: int | None, dense_ranks: int, element_bytes: float, is_first: bool) -> float:
    """Bytes from which a bucket is full; without end where a chunk is one.

    Parameters
    ----------
    parameters
        What the recipe asks for; None: Megatron's default.
    is_first
        Whether it is the first chunk of a pipeline's first rank.
    """
    if not is_first:
        return inf
    least = max(LEAST_PARAMETERS, 1_000_000 * dense_ranks) if parameters is None else parameters
    return least * element_bytes


def buckets_of(parts: Sequence[Reduction], layer_ids: Sequence[int], *, full_bytes: float) -> Iterator[Bucket]:
    """Cut the reductions of one kind of a chunk into buckets, from its last layer.

    Parameters
    ----------
    parts
        In the order of the layers; embedding and LM head go with the layer beside them.
    layer_ids
        The chunk's hidden layers.
    full_bytes
        A bucket that has as many is full.
    """
    size = 0.0
    for place, part in reversed(list(enumerate(parts))):
        size += part.bytes
        if size >= full_bytes or place == 0:
            layer = local_layer(part.layer, layer_ids)
            yield Bucket(group=part.group, operation=part.operation, bytes=size, layer=layer)
            size = 0.0


def local_layer(layer: int, layer_ids: Sequence[int]) -> int:
    """A layer of the model as one of a chunk's, counted from 0; embedding and LM head as the layer beside them."""
    return min(max(layer - layer_ids[0], 0), len(layer_ids) - 1)
