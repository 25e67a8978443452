"""Forward only: pipelines of inference."""

from __future__ import annotations

from collections.abc import Iterator

from moecast.sim.schedules.pipeline.cells import Block, Cell, Pipeline
from moecast.sim.schedules.pipeline.support import OneChunk


class ForwardOnly(OneChunk):
    """Microbatches go forward one after the other, as engines run prefill and decode in a pipeline.

    On even work the step takes (m + p − 1) F, of which (p − 1) F are bubble. Nothing is kept for a
    backward.
    """

    name = "forward"

    def order(self, rank: int, pipeline: Pipeline) -> Iterator[Block]:
        """What one rank does, in this order."""
        for microbatch in range(pipeline.microbatches):
            yield Cell("F", rank, microbatch)
