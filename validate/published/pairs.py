"""Errors of ratios: pairs of rows of one source and setting, which differ in batch or in layout alone.

Quantile regression: the line below which 80 % of the pairs' errors lie, against the size of the
predicted ratio. A setting with many rows has many pairs, and weighs as the root of their number.

Axes: R pair.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

from moecast.sim.accuracy import LEVEL, STEADY, JudgedRow, PairedErrors
from moecast.sim.accuracy.grounds import DECODE

Float = npt.NDArray[np.float64]

FAMILIES = (*DECODE, "decode steps, batches not full", STEADY)
"""Forecast and measured are of the same step in these alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two rows: the size of ln of their predicted ratio, and that of its error."""

    setting: str
    ratio: float
    error: float


def pairs_of(rows: Sequence[JudgedRow], *, kind: str) -> list[Pair]:
    """Pair the rows of each source and setting; `kind` "batch": of one layout, "layout": of two."""
    groups: dict[str, list[JudgedRow]] = defaultdict(list)
    for row in rows:
        if row.setting and row.family in FAMILIES:
            groups[f"{row.family}, {row.source}, {row.setting}"].append(row)
    return [
        Pair(
            setting=setting,
            ratio=abs(math.log(one.predicted_s / other.predicted_s)),
            error=abs(one.error - other.error),
        )
        for setting, own in groups.items()
        for one, other in combinations(own, 2)
        if (one.configuration == other.configuration) == (kind == "batch")
    ]


def paired_errors(rows: Sequence[JudgedRow], *, kind: str) -> PairedErrors:
    """Fit the line of a kind of pairs, and say what it covers of settings that were left out.

    Raises
    ------
    ValueError
        No pairs of the kind.
    """
    pairs = pairs_of(rows, kind=kind)
    if not pairs:
        raise ValueError(f"no two rows differ in {kind} alone")
    settings = sorted({pair.setting for pair in pairs})
    inside = asked = 0
    for setting in settings if len(settings) > 1 else ():
        floor, slope = line_of([pair for pair in pairs if pair.setting != setting])
        own = [pair for pair in pairs if pair.setting == setting]
        inside += sum(pair.error <= floor + slope * pair.ratio for pair in own)
        asked += len(own)
    floor, slope = line_of(pairs)
    covered = inside / asked if asked else math.nan
    return PairedErrors(floor=floor, slope=slope, pairs=len(pairs), settings=len(settings), covered=covered)


def line_of(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Floor and slope, neither below 0, of the line below which `LEVEL` of the errors lie."""
    ratio_R, error_R = (np.array([getattr(pair, name) for pair in pairs]) for name in ("ratio", "error"))
    many: dict[str, int] = defaultdict(int)
    for pair in pairs:
        many[pair.setting] += 1
    weight_R = np.array([many[pair.setting] ** -0.5 for pair in pairs])
    rows = len(pairs)
    # error = floor + slope ratio + above - below; above costs LEVEL of its weight, below the rest.
    cost = np.concatenate([[0.0, 0.0], LEVEL * weight_R, (1 - LEVEL) * weight_R])
    equal = np.hstack([np.ones((rows, 1)), ratio_R[:, None], np.eye(rows), -np.eye(rows)])
    found = linprog(cost, A_eq=equal, b_eq=error_R, bounds=(0, None), method="highs")
    assert found.x is not None  # errors as slack: there is always a line
    floor, slope = (max(0.0, float(value)) for value in found.x[:2])
    return floor, slope
