"""A pipeline's own recursion over mean ranks: what the ranks of a step take, from what cells take.

Rank j of a pipeline stage gives hidden vectors, and gradients, to rank j of the next. So for each j alone, a cell ends
no sooner than its rank has ended what came before and all that the cell works on has come, and then the cell's own
time. Of means over j the same holds, as the mean of a maximum is at least the maximum of means. Hence the recursion
below over the schedule's own order, with lower bounds of mean times for cells (`layer_floor`), gives a lower bound of
the mean of when ranks are done, and so of the step.

What stands in one cell is on one stream, one after another. Of a *pair* dispatch and combine stand beside: its rank
computes all of both before it goes on; the forward's result is there no sooner than all that the forward does one after
another, and that of the backward likewise, its weights' gradients left out. Either may be the first to compute: a
backward that begins by sending gradients to experts lets the forward's attention stand before what it computes, so that
what the backward works on need not have come for the forward to begin.

Axes: N block, C chunk, M microbatch, G pipeline rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner
from moecast.placement.layouts.training.orders import BOTH, FORWARD, INPUTS, WEIGHTS, OrderTable

Float = npt.NDArray[np.float64]


def time_cells(
    table: OrderTable, computed_3C: Float, chained_3C: Float, travels_2C: Float, *, send_s: float, end_G: Float
) -> float:
    """When the last rank is done.

    Parameters
    ----------
    computed_3C, chained_3C
        Forward, input gradients and weight gradients of each chunk: what is computed; all one after another.
    travels_2C
        Of pairs: what a forward, and a backward, sends beside what is computed; 0 says nothing of it.
    send_s
        From one rank of the pipeline to the next.
    end_G
        What follows each rank's last cell.

    Raises
    ------
    ValueError
        Arrays that are not of the table's chunks and ranks.
    """
    chunks, ranks = len(table.rank_C), int(table.rank_C.max()) + 1
    for name, array, shape in (
        ("computed_3C", computed_3C, (3, chunks)),
        ("chained_3C", chained_3C, (3, chunks)),
        ("travels_2C", travels_2C, (2, chunks)),
        ("end_G", end_G, (ranks,)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} = {array.shape}: of shape {shape}")
    arrays = (np.ascontiguousarray(array, np.float64) for array in (computed_3C, chained_3C, travels_2C, end_G))
    return float(
        _walk(table.blocks_N5, table.rank_C, table.before_C, table.behind_C, table.microbatches, *arrays, send_s)
    )


@inner
def _come(done_CM: Any, chunk: int, microbatch: int, rank: int, rank_C: Any, send_s: float) -> float:
    """When what another chunk gives is here."""
    if chunk < 0:
        return 0.0
    there: float = done_CM[chunk, microbatch]
    return there if rank_C[chunk] == rank else there + send_s


@entry
def _walk(
    blocks_N5: Any,
    rank_C: Any,
    before_C: Any,
    behind_C: Any,
    microbatches: int,
    computed_3C: Any,
    chained_3C: Any,
    travels_2C: Any,
    end_G: Any,
    send_s: float,
) -> float:
    forward_CM = np.zeros((len(rank_C), microbatches))
    inputs_CM = np.zeros((len(rank_C), microbatches))
    free_G, sent_G = np.zeros(len(end_G)), np.zeros(len(end_G))
    for block in blocks_N5:  # merged so that what a block works on stands before it: no time is asked for too early
        kind, chunk, microbatch = block[0], block[1], block[2]
        rank = rank_C[chunk]
        if kind == FORWARD:
            come = _come(forward_CM, before_C[chunk], microbatch, rank, rank_C, send_s)
            free_G[rank] = max(free_G[rank], come) + chained_3C[0, chunk]
            forward_CM[chunk, microbatch] = free_G[rank]
        elif kind in (INPUTS, BOTH):
            come = max(
                forward_CM[chunk, microbatch], _come(inputs_CM, behind_C[chunk], microbatch, rank, rank_C, send_s)
            )
            # Weights' gradients go layer by layer with the others, so that what is sent on waits for them as well.
            own = chained_3C[1, chunk] + (chained_3C[2, chunk] if kind == BOTH else 0.0)
            free_G[rank] = max(free_G[rank], come) + own
            inputs_CM[chunk, microbatch] = free_G[rank]
        elif kind == WEIGHTS:
            free_G[rank] = max(free_G[rank], inputs_CM[chunk, microbatch]) + chained_3C[2, chunk]
        else:
            back, other = block[3], block[4]
            begin = max(
                free_G[rank],
                forward_CM[back, other],
                _come(inputs_CM, behind_C[back], other, rank, rank_C, send_s),
            )
            come = max(free_G[rank], _come(forward_CM, before_C[chunk], microbatch, rank, rank_C, send_s))
            ahead, behind = computed_3C[0, chunk], computed_3C[1, back] + computed_3C[2, back]
            # Each result by its own chain alone: a lower bound however the two share the rank's compute.
            forward = come + chained_3C[0, chunk]
            inputs = begin + chained_3C[1, back]
            free = max(min(begin, come) + ahead + behind, begin + behind, come + ahead, inputs)
            sent = travels_2C[0, chunk] + travels_2C[1, back]
            if sent > 0.0:  # the stream that carries it is busy so long
                sent_G[rank] = max(sent_G[rank], begin) + sent
                forward, free = max(forward, sent_G[rank]), max(free, sent_G[rank])
            forward_CM[chunk, microbatch], inputs_CM[back, other], free_G[rank] = forward, inputs, free
    return float((free_G + end_G).max())
