"""How long users wait between two tokens of an answer: counts in narrow classes, since there are millions of them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

LEAST_S, MOST_S, PER_E = 1e-7, 1e5, 1000
"""Classes are a thousandth wide, of their value."""


class Gaps:
    """Counts of gaps by length; the mean is exact, quantiles are within a thousandth."""

    def __init__(self) -> None:
        self._counts = np.zeros(int(math.log(MOST_S / LEAST_S) * PER_E) + 2, np.int64)
        self._sum_s = self._squares = 0.0

    @property
    def count(self) -> int:
        """Gaps."""
        return int(self._counts.sum())

    @property
    def mean_s(self) -> float:
        """Mean gap; of none, 0."""
        return self._sum_s / self.count if self.count else 0.0

    def add(self, gaps_s: Float, weights: npt.NDArray[np.int64] | int = 1) -> None:
        """Take in gaps, each as often as its weight says."""
        if not len(gaps_s):
            return
        classes = (np.log(np.clip(gaps_s, LEAST_S, MOST_S) / LEAST_S) * PER_E).astype(np.int64)
        np.add.at(self._counts, classes, weights)
        self._sum_s += float(np.sum(gaps_s * weights))
        self._squares += float(np.sum(gaps_s**2 * weights))

    @property
    def std_s(self) -> float:
        """Standard deviation; of none, 0."""
        return math.sqrt(max(0.0, self._squares / self.count - self.mean_s**2)) if self.count else 0.0

    def quantile_s(self, part: float) -> float:
        """The gap that this part of all is below; of none, 0."""
        if not self.count:
            return 0.0
        at = int(np.searchsorted(np.cumsum(self._counts), max(part * self.count, 1)))
        return LEAST_S * math.exp((at + 0.5) / PER_E)
