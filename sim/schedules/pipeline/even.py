"""When the cells of a pipeline run on work that is known: a recursion over their order, for closed forms and pictures.

A forecast comes from a program of tasks and a network rung instead; this is the judge of its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moecast.errors import MoecastError
from moecast.sim.schedules.pipeline.cells import Block, Cell, Pair
from moecast.sim.schedules.pipeline.order import PipelineOrder, given


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSeconds:
    """How long the passes through one chunk take.

    Parameters
    ----------
    forward_s, inputs_s, weights_s
        F, B and W; a BW takes the sum of the last two.
    pair_s
        An F and a BW as one; None: what they take one after the other.
    """

    forward_s: float
    inputs_s: float
    weights_s: float
    pair_s: float | None = None

    def __post_init__(self) -> None:
        for field in ("forward_s", "inputs_s", "weights_s", "pair_s"):
            seconds = getattr(self, field)
            if seconds is not None and not 0 <= seconds < float("inf"):
                raise MoecastError("seconds, at least 0", field=field, value=seconds)

    def of(self, cell: Cell) -> float:
        """What one cell takes."""
        backward_s = self.inputs_s + self.weights_s
        return {"F": self.forward_s, "B": self.inputs_s, "W": self.weights_s, "BW": backward_s}[cell.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A block with the seconds of its start and its end."""

    rank: int
    block: Block
    start_s: float
    end_s: float


def time_order(order: PipelineOrder, seconds_C: Sequence[CellSeconds], *, send_s: float = 0.0) -> tuple[Timed, ...]:
    """When each block starts and ends, in the merged order.

    A block starts when its rank has ended the last one and all that it works on has come; from
    another rank this takes `send_s`, under which both go on.

    Parameters
    ----------
    order
        Every rank's blocks.
    seconds_C
        Of each chunk's passes; of a pair, the mean of its two chunks'.
    send_s
        From one rank to the next.
    """
    free_G = [0.0] * order.chunks.n_ranks
    done: dict[Cell, tuple[float, int]] = {}
    timed = []
    for rank, block in order.merged():
        start_s = max([free_G[rank], *_arrivals(order, rank, block, done, send_s)])
        free_G[rank] = end_s = start_s + _seconds(block, seconds_C)
        done.update({given(cell): (end_s, rank) for cell in block.cells})
        timed.append(Timed(rank=rank, block=block, start_s=start_s, end_s=end_s))
    return tuple(timed)


def _arrivals(
    order: PipelineOrder, rank: int, block: Block, done: Mapping[Cell, tuple[float, int]], send_s: float
) -> list[float]:
    come = (done[need] for cell in block.cells for need in order.needs(cell))
    return [end_s + (send_s if origin != rank else 0.0) for end_s, origin in come]


def _seconds(block: Block, seconds_C: Sequence[CellSeconds]) -> float:
    if isinstance(block, Cell):
        return seconds_C[block.chunk].of(block)
    return _pair_seconds(block, seconds_C)


def _pair_seconds(pair: Pair, seconds_C: Sequence[CellSeconds]) -> float:
    chunks = [seconds_C[cell.chunk] for cell in pair.cells]
    apart_s = sum(chunk.of(cell) for chunk, cell in zip(chunks, pair.cells, strict=True))
    return sum(apart_s if chunk.pair_s is None else chunk.pair_s for chunk in chunks) / 2
