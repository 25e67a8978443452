"""GPipe: every microbatch forward, then every microbatch backward."""

from __future__ import annotations

from collections.abc import Iterator

from moecast.sim.schedules.pipeline.cells import Block, Cell, Pipeline
from moecast.sim.schedules.pipeline.support import OneChunk


class GPipe(OneChunk):
    """All forwards, then all backwards, the last microbatch first, as arXiv 1811.06965 draws it.

    On even work the bubble is (p − 1)(F + B + W), (p − 1)/(m + p − 1) of the step; a rank keeps the
    activations of all m microbatches.
    """

    name = "gpipe"

    def order(self, rank: int, pipeline: Pipeline) -> Iterator[Block]:
        """What one rank does, in this order."""
        for microbatch in range(pipeline.microbatches):
            yield Cell("F", rank, microbatch)
        for microbatch in reversed(range(pipeline.microbatches)):
            yield Cell("BW", rank, microbatch)
