"""Interleaved 1F1B: each rank holds several thin chunks, so that the pipeline fills in a part of the time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from moecast.sim.schedules.pipeline.cells import Block, Chunks, Pipeline
from moecast.sim.schedules.pipeline.routes import looped, looped_cell


class InterleavedOneFOneB:
    """1F1B over v chunks per rank, p microbatches through one chunk before the next: Megatron-LM, arXiv 2104.04473.

    On even work the bubble is (p − 1)(F + B + W)/v, where F, B and W are all v chunks of a rank.
    The first rank keeps the activations of pv + p − 1 chunks: of p(1 + (p − 1)/(pv)) microbatches,
    where 1F1B's keeps those of p.
    """

    name = "interleaved_1f1b"

    def supports(self, pipeline: Pipeline) -> str | None:
        """At least two chunks per rank, microbatches in groups of p."""
        if pipeline.virtual < 2:
            return "at least two virtual stages per rank"
        whole = pipeline.microbatches % pipeline.pp == 0
        return None if whole else f"microbatches in whole groups of {pipeline.pp}, one for each pipeline rank"

    def chunks(self, pipeline: Pipeline) -> Chunks:
        """Chunk c on rank c mod p."""
        return looped(pipeline.pp, pipeline.virtual)

    def order(self, rank: int, pipeline: Pipeline) -> Iterator[Block]:
        """What one rank does, in this order."""
        pp, virtual = pipeline.pp, pipeline.virtual

        cell = partial(looped_cell, pipeline, rank)
        turns = pipeline.microbatches * virtual
        ahead = min(2 * (pp - 1 - rank) + (virtual - 1) * pp, turns)
        for turn in range(ahead):
            yield cell("F", turn)
        for turn in range(turns - ahead):
            yield cell("F", ahead + turn)
            yield cell("BW", turn)
        for turn in range(turns - ahead, turns):
            yield cell("BW", turn)
