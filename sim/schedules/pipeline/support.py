"""The reasons for which pipeline schedules refuse, one line each."""

from __future__ import annotations

from moecast.sim.schedules.pipeline.cells import Pipeline


def one_chunk(pipeline: Pipeline) -> str | None:
    """What a schedule says that gives each rank one chunk."""
    return None if pipeline.virtual == 1 else "one virtual stage per rank: it does not cut a rank's layers further"


def two_chunks(pipeline: Pipeline) -> str | None:
    """What a schedule says that goes down the ranks and up again."""
    return None if pipeline.virtual == 2 else "two virtual stages per rank: it goes through the ranks down and up again"
