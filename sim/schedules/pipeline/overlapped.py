"""1F1B with the all-to-all of one microbatch under the compute of another, interleaved or not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from moecast.sim.schedules.pipeline.cells import Block, Chunks, Pair, Pipeline
from moecast.sim.schedules.pipeline.routes import looped, looped_cell


class OverlappedOneFOneB:
    """1F1B one microbatch further ahead, so that a forward and the backward beside it are of different ones.

    Each such pair runs as one: Megatron-Core's `overlap_moe_expert_parallel_comm`, after DualPipe
    (arXiv 2412.19437). A pair is on its way to the next rank as long as both its halves, so ranks
    are as far ahead as interleaving has them, with one chunk too. On even work, a rank holding v
    chunks, a step of at least 2p microbatches takes v(m - p) + p - 1 pairs and pv times F + B + W
    of a chunk. Rank r keeps the activations of 2(p - r) + (v - 1)p chunks at most.
    """

    name = "1f1b_overlapped"

    def supports(self, pipeline: Pipeline) -> str | None:
        """With several chunks per rank, microbatches in groups of p."""
        whole = pipeline.virtual == 1 or pipeline.microbatches % pipeline.pp == 0
        return None if whole else f"microbatches in whole groups of {pipeline.pp}, one for each pipeline rank"

    def chunks(self, pipeline: Pipeline) -> Chunks:
        """Chunk c on rank c mod p."""
        return looped(pipeline.pp, pipeline.virtual)

    def order(self, rank: int, pipeline: Pipeline) -> Iterator[Block]:
        """What one rank does, in this order."""
        pp, virtual = pipeline.pp, pipeline.virtual

        cell = partial(looped_cell, pipeline, rank)
        turns = pipeline.microbatches * virtual
        ahead = min(2 * (pp - 1 - rank) + (virtual - 1) * pp + 1, turns)
        for turn in range(ahead):
            yield cell("F", turn)
        for turn in range(turns - ahead):
            yield Pair(cell("F", ahead + turn), cell("BW", turn))
        for turn in range(turns - ahead, turns):
            yield cell("BW", turn)
