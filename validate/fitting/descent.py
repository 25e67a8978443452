"""Least squares of logarithms, with starts and bounds by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

Float = npt.NDArray[np.float64]
Range = tuple[float, float, float]  # start, lowest, highest

SCALE = 0.05  # relative errors above this count less than squared


def descend(
    forecast: Callable[[dict[str, float]], Float],
    seconds_R: Float,
    ranges: Mapping[str, Range],
    *,
    spread: float | None = None,
) -> tuple[float, dict[str, float]]:
    """Find parameters whose forecasts are near the measured seconds: what is left (soft l1), and the parameters.

    Both parameters and times are taken as logarithms. The parameters come back with four digits.
    `spread`: of a prior about the starts, in logarithms, which holds parameters that the rows do
    not; None: no prior.
    """
    first, low, high = (np.log(column) for column in zip(*ranges.values(), strict=True))
    measured = np.log(seconds_R)

    def residual(x: Float) -> Float:
        errors = np.log(forecast(dict(zip(ranges, np.exp(x).tolist(), strict=True)))) - measured
        return errors if spread is None else np.concatenate([errors, SCALE / spread * (x - first)])

    found = least_squares(
        residual,
        np.clip(first, low + 1e-6, high - 1e-6),
        bounds=(low, high),
        loss="soft_l1",
        f_scale=SCALE,
        diff_step=np.full(first.size, 1e-3),
        max_nfev=60,
    )
    rounded = {
        name: min(max(float(f"{value:.4g}"), ranges[name][1]), ranges[name][2])
        for name, value in zip(ranges, np.exp(found.x), strict=True)
    }
    return float(found.cost), rounded
