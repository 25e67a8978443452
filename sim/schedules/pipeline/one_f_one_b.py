"""1F1B: as soon as a microbatch can go backward it does, one forward and one backward in turn."""

from __future__ import annotations

from collections.abc import Iterator

from moecast.sim.schedules.pipeline.cells import Block, Pipeline, Turns
from moecast.sim.schedules.pipeline.support import OneChunk


class OneFOneB(OneChunk):
    """One forward, one backward, with a flush at the end of the step: PipeDream-Flush, arXiv 2006.09503, 2104.04473.

    On even work the bubble is GPipe's, (p − 1)(F + B + W), but rank r keeps the activations of p −
    r microbatches at most.
    """

    name = "1f1b"

    def order(self, rank: int, pipeline: Pipeline) -> Iterator[Block]:
        """What one rank does, in this order."""
        turns = Turns(rank)
        ahead = min(pipeline.pp - 1 - rank, pipeline.microbatches)
        for _ in range(ahead):
            yield turns.forward()
        for _ in range(pipeline.microbatches - ahead):
            yield turns.forward()
            yield turns.backward()
        for _ in range(ahead):
            yield turns.backward()
