"""Which rows a fit may use, and how far off it is on all others."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

MOST_SHARE = 0.02  # of a table's rows


def draw_rows(rows: int, *, seed: int, most: int = 700) -> Bool:
    """Mark the rows that a fit may use: 2 % of them, at most `most`; the same ones for the same seed."""
    marked = np.zeros(rows, bool)
    drawn = np.random.default_rng(seed).choice(rows, min(most, int(rows * MOST_SHARE)), replace=False)
    marked[drawn] = True
    return marked


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """Relative errors over rows: median and 90th percentile of their size, and the median with its sign.

    `error_R`: each row's own, to be pooled with others.
    """

    rows: int
    median: float
    p90: float
    bias: float
    error_R: Float = field(default_factory=lambda: np.zeros(0), compare=False, repr=False)

    @classmethod
    def of(cls, forecast_R: Float, measured_R: Float) -> Errors:
        """Compare forecasts with measurements, row by row; nan where there are none."""
        if not measured_R.size:
            return cls(rows=0, median=float("nan"), p90=float("nan"), bias=float("nan"))
        error_R = forecast_R / measured_R - 1
        size_R = np.abs(error_R)
        return cls(
            rows=int(error_R.size),
            median=float(np.median(size_R)),
            p90=float(np.quantile(size_R, 0.9)),
            bias=float(np.median(error_R)),
            error_R=error_R,
        )

    def __str__(self) -> str:
        if not self.rows:
            return f"{'-':>7} {'-':>7} {'-':>7}"
        return f"{self.median:7.1%} {self.p90:7.1%} {self.bias:+7.1%}"
