"""Pipelines' orders as tables that a compiled loop walks through, and what they keep in flight.

Axes: N block of the merged order, C chunk, G pipeline rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.sim.schedules.pipeline import Chunks, Pair, Pipeline, PipelineOrder, find_pipeline_schedule, make_order

Int32 = npt.NDArray[np.int32]

FORWARD, INPUTS, WEIGHTS, BOTH, PAIR = range(5)
KIND = {"F": FORWARD, "B": INPUTS, "W": WEIGHTS, "BW": BOTH}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OrderTable:
    """A merged order.

    Parameters
    ----------
    blocks_N5
        Of each block: what it is, chunk and microbatch of its forward, or of all there is; of a pair's backward.
    rank_C, before_C, behind_C
        As of `Chunks`.

    Raises
    ------
    ValueError, TypeError
        A kind, chunk, microbatch or rank that is not there.
    """

    blocks_N5: Int32 = field(repr=False)
    rank_C: Int32
    before_C: Int32
    behind_C: Int32
    microbatches: int

    def __post_init__(self) -> None:
        chunks, last = np.shape(self.rank_C), self.microbatches - 1
        for name, least in (("rank_C", 0), ("before_C", -1), ("behind_C", -1)):
            array = getattr(self, name)
            checked = whole_numbers(name, array, least=least, most=chunks[0] - 1, shape=chunks, dtype=np.int32)
            object.__setattr__(self, name, checked)
        most = max(PAIR, chunks[0] - 1, last)
        blocks_N5 = whole_numbers("blocks_N5", self.blocks_N5, least=-1, most=most, shape=(None, 5), dtype=np.int32)
        object.__setattr__(self, "blocks_N5", blocks_N5)
        paired_N5 = blocks_N5[blocks_N5[:, 0] == PAIR]
        for what, values_N, most in (
            ("kinds", blocks_N5[:, 0], PAIR),
            ("chunks", blocks_N5[:, 1], chunks[0] - 1),
            ("microbatches", blocks_N5[:, 2], last),
            ("chunks of pairs", paired_N5[:, 3], chunks[0] - 1),
            ("microbatches of pairs", paired_N5[:, 4], last),
        ):
            whole_numbers(f"blocks_N5, {what}", values_N, most=most)

    @classmethod
    def of(cls, order: PipelineOrder) -> OrderTable:
        """Lay an order out."""
        rows = []
        for _, block in order.merged():
            if isinstance(block, Pair):
                one, other = block.forward, block.backward
                rows.append((PAIR, one.chunk, one.microbatch, other.chunk, other.microbatch))
            else:
                rows.append((KIND[block.kind], block.chunk, block.microbatch, -1, -1))
        chunks = order.chunks
        tables = (np.array(values, np.int32) for values in (chunks.rank_C, chunks.before_C, chunks.behind_C))
        return cls(
            blocks_N5=np.array(rows, np.int32),
            **dict(zip(("rank_C", "before_C", "behind_C"), tables, strict=True)),
            microbatches=order.microbatches,
        )


@lru_cache(maxsize=64)
def order_table(schedule: str, pipeline: Pipeline) -> OrderTable:
    """The table of a schedule's order.

    Raises
    ------
    MoecastError
        The schedule does not go with the pipeline.
    """
    return OrderTable.of(make_order(find_pipeline_schedule(schedule), pipeline))


@lru_cache(maxsize=4096)
def in_flight(schedule: str, pipeline: Pipeline) -> tuple[int, ...]:
    """The most microbatches that each pipeline rank keeps activations of.

    An order repeats itself once its pipeline is full, so that more microbatches keep no more in flight. Where two
    numbers of them, a round of the pipeline apart, keep as many, so does the number asked; else it is counted itself.
    """
    round_, most = 2 * pipeline.pp, pipeline.microbatches
    least = 4 * pipeline.pp * pipeline.virtual
    if most > least + 2 * round_:
        few = least + (most - least) % round_
        counted = [_peaks(schedule, pipeline, microbatches) for microbatches in (few, few + round_)]
        if all(one == other for one, other in pairwise(counted)):
            return counted[0]
    return _peaks(schedule, pipeline, most)


def _peaks(schedule: str, pipeline: Pipeline, microbatches: int) -> tuple[int, ...]:
    sizes = Pipeline(pp=pipeline.pp, virtual=pipeline.virtual, microbatches=microbatches)
    order = make_order(find_pipeline_schedule(schedule), sizes)
    return tuple(order.peak_in_flight(rank) for rank in range(order.chunks.n_ranks))


@lru_cache(maxsize=256)
def chunks_of(schedule: str, pp: int, virtual: int) -> Chunks:
    """Where the pieces of a model stand, whatever the number of microbatches."""
    sizes = Pipeline(pp=pp, virtual=virtual, microbatches=2 * pp * virtual)
    return find_pipeline_schedule(schedule).chunks(sizes)
