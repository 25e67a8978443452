"""What pipeline schedules share: why they refuse, one line each, and where one chunk a rank stands."""

from __future__ import annotations

from moecast.sim.schedules.pipeline.cells import Chunks, Pipeline
from moecast.sim.schedules.pipeline.routes import straight


def one_chunk(pipeline: Pipeline) -> str | None:
    """What a schedule says that gives each rank one chunk."""
    return None if pipeline.virtual == 1 else "one virtual stage per rank: it does not cut a rank's layers further"


def two_chunks(pipeline: Pipeline) -> str | None:
    """What a schedule says that goes down the ranks and up again."""
    return None if pipeline.virtual == 2 else "two virtual stages per rank: it goes through the ranks down and up again"


class OneChunk:
    """A schedule that gives each rank one chunk, one rank after the other."""

    def supports(self, pipeline: Pipeline) -> str | None:
        """One chunk per rank."""
        return one_chunk(pipeline)

    def chunks(self, pipeline: Pipeline) -> Chunks:
        """One after the other."""
        return straight(pipeline.pp)
