"""Gradients and parameters beside microbatches: Megatron's `--overlap-grad-reduce` and `--overlap-param-gather`.

A bucket's gradients are reduced as soon as the last microbatch's backward pass has gone through its
first layer. Its parameters are gathered before the first microbatch's forward pass comes to it: the
first bucket of a chunk when the step starts, each other when the pass comes to the bucket before it
(Megatron's forward hooks). So what the step before left to be gathered is here, and every step is
like the next. With ZeRO 2 gradients are reduced beside each microbatch, with ZeRO 3 parameters are
gathered before each pass of each, layer by layer.

Experts and all else travel on two streams each. Kernels beside them have fewer SMs, and what is
sent beside kernels takes longer (`moecast.sim.overlap`); what is sent before the first kernel or
behind the last one does not (`moecast.sim.training.alone`). Megatron starts these on all ranks of a
pipeline when its first does, unless `--no-align-grad-reduce` says otherwise; here each starts when
it can.

Axes: C chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moecast.sim.program import Exchange
from moecast.sim.schedules.pipeline.cells import Cell
from moecast.sim.schedules.pipeline.companions import Ahead, Companion, Spot
from moecast.sim.schedules.pipeline.order import PipelineOrder
from moecast.sim.training.buckets import Bucket, bucket_bytes, buckets_of
from moecast.sim.training.collectives import Collectives
from moecast.sim.training.gradients import Group, Reduction, When, reductions
from moecast.sim.training.recipe import Recipe
from moecast.sim.training.stage import StageWork

GROUPS: tuple[Group, ...] = ("dense", "expert")


def overlaps(part: Reduction, recipe: Recipe) -> bool:
    """Whether a reduction stands beside microbatches; those over tensor parallel ranks never do."""
    if part.group not in GROUPS:
        return False
    return recipe.overlap_param_gather if part.operation == "all-gather" else recipe.overlap_grad_reduce


def gradient_stream(group: Group) -> str:
    """The stream on which a kind of parameters has its gradients reduced."""
    return f"{group} gradients"


def parameter_stream(group: Group) -> str:
    """The stream on which a kind of parameters is gathered."""
    return f"{group} parameters"


GRADIENT_STREAMS = frozenset(map(gradient_stream, GROUPS))
STREAMS = GRADIENT_STREAMS | set(map(parameter_stream, GROUPS))
"""Those of all that stands beside microbatches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A bucket with the exchange that carries it."""

    bucket: Bucket
    exchange: Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkBeside:
    """What is sent beside the passes of one chunk.

    Parameters
    ----------
    layers
        How many it has.
    reduced
        Gradients, in the order in which they are there.
    gathered
        By pass, for each kind of parameters, in the order in which the pass comes to them.
    first, last
        The microbatches whose forward comes first, and whose gradients of weights come last.
    every
        Whether every microbatch's pass has these: of the forward, of the backward, of gradients.
    """

    layers: int
    reduced: tuple[Sent, ...]
    gathered: dict[When, tuple[tuple[Sent, ...], ...]]
    first: int
    last: int
    every: frozenset[str]

    def gathers(self, cell: Cell) -> tuple[tuple[Sent, ...], ...]:
        """What is gathered for a cell."""
        when: When = "forward" if cell.kind == "F" else "backward"
        taken = when in self.every or (when == "forward" and cell.microbatch == self.first)
        return self.gathered.get(when, ()) if taken and cell.kind != "W" else ()

    def reduces(self, cell: Cell) -> tuple[Sent, ...]:
        """What is reduced behind a cell."""
        taken = "gradients" in self.every or cell.microbatch == self.last
        return self.reduced if taken and cell.kind in ("W", "BW") else ()

    def ahead(self, cell: Cell, layer: int) -> Ahead:
        """Give what goes with the start of a layer: what it wants, and what comes next."""
        sent: list[Companion] = []
        wanted: list[object] = []
        # layers that the pass has come to
        done = range(layer + 1) if cell.kind == "F" else range(layer, self.layers)
        is_first = len(done) == 1
        for chain in self.gathers(cell):
            key = [(cell, part.bucket.group, place) for place, part in enumerate(chain)]
            here = [place for place, part in enumerate(chain) if part.bucket.layer == layer]
            before = sum(part.bucket.layer in done for part in chain) - len(here)
            # the first when the cell starts, each other when the pass comes to the one before it
            starts = range(0 if is_first else before + 1, min(before + len(here) + 1, len(chain)))
            at_once = cell.microbatch == self.first and cell.kind == "F"
            sent += [
                Companion(exchange=chain[place].exchange, key=key[place], at_once=at_once and place == 0)
                for place in starts
            ]
            wanted += [key[place] for place in here]
        return Ahead(sent=sent, wanted=wanted)


class Overlapped:
    """What is sent beside the passes of a training step, for the lowering of its pipeline.

    Parameters
    ----------
    order
        Of the pipeline.
    works
        Of its chunks [C].
    collectives
        Makes the exchanges of each pipeline rank.
    gradients
        Whether these are its matter; else parameters alone are.
    """

    def __init__(
        self,
        order: PipelineOrder,
        works: Sequence[StageWork],
        recipe: Recipe,
        collectives: Sequence[Collectives],
        *,
        gradients: bool = True,
    ) -> None:
        rank_C = order.chunks.rank_C
        self._chunks = [
            _chunk_beside(order, chunk, work, recipe, collectives[rank], gradients=gradients)
            for chunk, (rank, work) in enumerate(zip(rank_C, works, strict=True))
        ]

    def ahead(self, cell: Cell, layer: int) -> Ahead:
        """Parameters that a layer wants, and those that are wanted next."""
        return self._chunks[cell.chunk].ahead(cell, layer)

    def behind(self, cell: Cell, layer: int, spot: Spot) -> Sequence[Exchange]:
        """Gradients of the buckets that a layer completes."""
        reduced = self._chunks[cell.chunk].reduces(cell) if spot == "end" else ()
        return [part.exchange for part in reduced if part.bucket.layer == layer]

    def slow(self, cell: Cell, layer: int) -> bool:
        """Whether a bucket has been reduced before the layer, or one is gathered for a later one."""
        chunk = self._chunks[cell.chunk]
        gathered = [part.bucket.layer for chain in chunk.gathers(cell) for part in chain]
        later = (other > layer if cell.kind == "F" else other < layer for other in gathered)
        return any(later) or any(part.bucket.layer > layer for part in chunk.reduces(cell))


def _chunk_beside(
    order: PipelineOrder, chunk: int, work: StageWork, recipe: Recipe, collectives: Collectives, *, gradients: bool
) -> ChunkBeside:
    parts = [
        part
        for part in reductions(work.shard, recipe.precision, zero=recipe.zero)
        if overlaps(part, recipe) and (gradients or part.operation == "all-gather")
    ]
    is_first = chunk == order.chunks.rank_C.index(0)
    own = [cell for cell in order.cells_of(order.chunks.rank_C[chunk]) if cell.chunk == chunk]
    every = {"gradients"} if recipe.zero >= 2 else set()
    every |= {"forward", "backward"} if recipe.zero == 3 else set()

    def sent(group: Group, when: When, *, gathers: bool) -> tuple[Sent, ...]:
        wanted = [
            part
            for part in parts
            if part.group == group and part.when == when and (part.operation == "all-gather") == gathers
        ]
        each = recipe.precision.weight_bytes if gathers else recipe.precision.gradient_bytes
        least = 0 if recipe.zero == 3 else recipe.bucket_parameters  # ZeRO 3 cuts by layers
        full = bucket_bytes(
            parameters=least, dense_ranks=work.shard.dense_ranks, element_bytes=each, is_first=is_first or least == 0
        )
        stream = parameter_stream(group) if gathers else gradient_stream(group)
        return tuple(
            Sent(bucket=bucket, exchange=collectives.beside(group, bucket.operation, bucket.bytes, stream=stream))
            for bucket in buckets_of(wanted, work.layer_ids, full_bytes=full)
        )

    def chains(when: When) -> tuple[tuple[Sent, ...], ...]:
        """From the model's end, as a backward pass comes to them."""
        return tuple(chain for group in GROUPS if (chain := sent(group, when, gathers=True)))

    forward = chains("forward" if recipe.zero == 3 else "step")
    return ChunkBeside(
        layers=len(work.layer_ids),
        reduced=tuple(part for group in GROUPS for part in sent(group, "backward", gathers=False)),
        gathered={"forward": tuple(chain[::-1] for chain in forward), "backward": chains("backward")},
        first=next(cell.microbatch for cell in own if cell.kind == "F"),
        last=[cell.microbatch for cell in own if cell.kind in ("W", "BW")][-1],
        every=frozenset(every),
    )
