"""How far off forecasts of rows are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


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
