"""Kernels that only move memory: bytes at the rate of the memory, or of the L2 cache where they all fit.

Benchmarks run a kernel again and again on the same buffers, so that small ones stay in L2. In a
step, what one kernel writes the next one reads, so that activations are warm as well; weights are
not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

WARM_PART = (
    0.5  # of L2, in which everything that moves still hits; at all of L2 nothing does (a loop over a full cache)
)


def moving_seconds(moved_bytes: npt.ArrayLike, *, memory_Bps: float, cache_ratio: float, l2_bytes: float) -> Float:
    """Time to move bytes at a reached rate, faster where they stay in L2.

    Never falls when bytes are added.

    Below `WARM_PART` of L2 all hit, at its size none; the missing part grows in a straight line
    between.
    """
    moved = np.asarray(moved_bytes, np.float64)
    missing = np.clip((moved / l2_bytes - WARM_PART) / (1 - WARM_PART), 0.0, 1.0)
    seconds: Float = moved / memory_Bps * (missing + (1 - missing) / cache_ratio)
    return seconds
