"""What a measure is like over requests: mean, quantiles, spread.

Axes: Q request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds of one measure over requests (of ITL: over gaps between tokens)."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    std_s: float

    @classmethod
    def of(cls, seconds_Q: Float) -> Latency:
        """Summarise; of nothing, zeros."""
        if not len(seconds_Q):
            return cls(mean_s=0.0, p50_s=0.0, p90_s=0.0, p99_s=0.0, std_s=0.0)
        p50_s, p90_s, p99_s = np.percentile(seconds_Q, [50, 90, 99]).tolist()
        return cls(mean_s=float(seconds_Q.mean()), p50_s=p50_s, p90_s=p90_s, p99_s=p99_s, std_s=float(seconds_Q.std()))
