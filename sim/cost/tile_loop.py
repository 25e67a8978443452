"""The cheapest tiling of a matrix product: the loop over candidate tiles, compiled.

Sources: tile and wave quantisation (NVIDIA, "Matrix Multiplication Background User's Guide");
split-K (CUTLASS, "Efficient GEMM in CUDA"). Libraries choose a tile per shape by heuristics or by
timing; the minimum over the candidates is what a perfect choice would give.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry

Float = npt.NDArray[np.float64]

DEPTH = 64  # elements of the inner dimension that a tile takes at once: kernels pad to it


class TileCost(NamedTuple):
    """What a tile costs, in seconds per unit of what it does."""

    flop_s: float  # of one FLOP of one SM
    row_s: float  # of one element of the left operand through the SM
    column_s: float  # of one weight through the SM
    inner_s: float  # of one element of the inner dimension, however small the tile
    wave_s: float  # of one wave: prologue and tail
    output_s: float  # of one output element of one SM
    split_s: float  # of splitting at all: a second kernel or a semaphore
    partial_s: float  # of one partial sum, over the whole GPU


@entry
def cheapest_tiles(
    m_R: Float, n_R: Float, k_R: Float, batch_R: Float, tiles_C4: Float, cost: TileCost, sms: float
) -> Float:
    """Seconds of the cheapest candidate for each batch of products [m, k] x [k, n].

    Axes: R batch of products, C candidate of (rows, columns, splits, largest m that takes it).
    Monotone in all sizes: each candidate is, and as m grows there are fewer.
    """
    best_R = np.empty(m_R.size)
    for r in range(m_R.size):
        m, n, k = m_R[r], n_R[r], k_R[r]
        best, last_rows, last_splits, tall, inner = np.inf, 0.0, 0.0, 0.0, 0.0
        for c in range(tiles_C4.shape[0]):
            if m > tiles_C4[c, 3]:
                continue
            rows, columns, splits = tiles_C4[c, 0], tiles_C4[c, 1], tiles_C4[c, 2]
            if rows != last_rows:  # divisions are most of the time: do them where something has changed
                tall, last_rows = np.ceil(m / rows) * batch_R[r], rows
            if splits != last_splits:
                inner, last_splits = np.ceil(k / splits / DEPTH) * DEPTH, splits
            waves = np.ceil(tall * np.ceil(n / columns) * splits / sms)
            # A tile's operands pass through its SM while it multiplies: the slower of the two
            # counts.
            tile_s = inner * max(rows * columns * 2.0 * cost.flop_s, rows * cost.row_s + columns * cost.column_s)
            seconds = max(waves * tile_s, inner * cost.inner_s) + waves * (cost.wave_s + rows * columns * cost.output_s)
            if splits > 1:
                seconds += cost.split_s + splits * batch_R[r] * m * n * cost.partial_s
            best = min(best, seconds)
        best_R[r] = best
    return best_R
