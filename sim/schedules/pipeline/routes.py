"""The ways through the ranks of a pipeline that schedules share."""

from __future__ import annotations

from moecast.sim.schedules.pipeline.cells import Cell, Chunks, Pass, Pipeline


def straight(pp: int) -> Chunks:
    """One chunk per rank, one rank after the other."""
    return looped(pp, 1)


def looped(pp: int, virtual: int) -> Chunks:
    """Through all ranks, `virtual` times over: rank 0 again after the last."""
    return Chunks(rank_C=tuple(range(pp)) * virtual, routes=(tuple(range(pp * virtual)),))


def down_and_up(pp: int) -> Chunks:
    """Two chunks per rank: through the ranks and back, so that the first rank has the model's first and last layers."""
    return Chunks(rank_C=(*range(pp), *reversed(range(pp))), routes=(tuple(range(2 * pp)),))


def both_ways(pp: int) -> Chunks:
    """Two copies of the model, one from the first rank to the last, one from the last to the first.

    Chunk c < p is piece c of the one copy; chunk p + r is what rank r holds of the other, its piece
    p − 1 − r.
    """
    there, back = tuple(range(pp)), tuple(reversed(range(pp, 2 * pp)))
    return Chunks(rank_C=there * 2, routes=(there, back))


def looped_cell(pipeline: Pipeline, rank: int, kind: Pass, turn: int) -> Cell:
    """What a rank does at its turn-th forward or backward, where p microbatches go through one chunk before the next.

    Backward the last chunk comes first.
    """
    group, within = divmod(turn, pipeline.pp * pipeline.virtual)
    loop, member = divmod(within, pipeline.pp)
    loop = loop if kind == "F" else pipeline.virtual - 1 - loop
    return Cell(kind, loop * pipeline.pp + rank, group * pipeline.pp + member)
