"""What grouped products need to know of the loads of slots, in one compiled pass: the tiles that their rows fill."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@entry
def count_tiles(load_RP: Int, rows_B: Int) -> tuple[Int, Int, Int]:
    """Rows of each rank, slots with any, and tiles of each height that its slots fill.

    Axes: R rank, P slot, B height of a tile in rows. A tile holds rows of one slot only.
    """
    ranks, slots = load_RP.shape
    rows_R, hit_R = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    tiles_RB = np.zeros((ranks, rows_B.size), np.int64)
    for r in range(ranks):
        for p in range(slots):
            load = load_RP[r, p]
            if load > 0:
                rows_R[r] += load
                hit_R[r] += 1
                for b in range(rows_B.size):
                    # Heights are few and the loop over slots long: one division each beats sorting
                    # loads.
                    tiles_RB[r, b] += (load + rows_B[b] - 1) // rows_B[b]
    return rows_R, hit_R, tiles_RB
