"""Intervals from known errors: where 80 % of measurements lie about a forecast of the same kind.

Conformal prediction on ln (measured ÷ predicted), with the rows of a configuration, which are no
independent witnesses, taken together: the new row counts as one configuration more, of whose mass
one half lies beyond each row's own place. Lei et al., Distribution-free predictive inference for
regression (2018), has the idea for single rows.

Axes: R row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.sim.accuracy.known_errors import JudgedRow

LEVEL = 0.8
FEWEST = 8
"""Configurations below which ten percent of either end cannot be told."""
OWN = 15
"""Configurations of one source from which its rows stand alone: fewer say less of it than those of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Bounds of measured ÷ predicted, and the rows that they rest on.

    Parameters
    ----------
    low, high
        Factors on a forecast.
    source
        Whose rows these are; empty: of all sources of the family.
    """

    low: float
    high: float
    rows: tuple[JudgedRow, ...]
    source: str = ""

    def of(self, value: float) -> tuple[float, float]:
        """The interval about a forecast, in its unit."""
        return value * self.low, value * self.high


def error_interval(error_R: npt.ArrayLike, configuration_R: Sequence[str]) -> tuple[float, float] | None:
    """Ends of the 80 % interval of errors; None where there are too few configurations."""
    error_R = np.sort(np.asarray(error_R, np.float64))
    configurations = len(set(configuration_R))
    if configurations < FEWEST:
        return None
    rows = len(error_R)
    own = rows / configurations  # what a new row weighs: a configuration's mean
    place_R = (np.arange(rows) + 0.5 + own / 2) / (rows + own)
    tail = (1 - LEVEL) / 2
    return float(np.interp(tail, place_R, error_R)), float(np.interp(1 - tail, place_R, error_R))


def interval_of(rows: Sequence[JudgedRow], *, source: str = "", without: str = "") -> Interval | None:
    """The interval for a question of a source, from the rows of a family.

    Parameters
    ----------
    source
        By its own rows, where it has enough.
    without
        A configuration to leave out: a row is not judged by itself.
    """
    kept = [row for row in rows if not without or row.configuration != without]
    own = [row for row in kept if row.source == source]
    alone = len({row.configuration for row in own}) >= OWN
    some = own if alone else kept
    found = error_interval([row.error for row in some], [row.configuration for row in some])
    if found is None:
        return None
    low, high = (float(np.exp(end)) for end in found)
    return Interval(low=low, high=high, rows=tuple(some), source=source if alone else "")
