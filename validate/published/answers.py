"""Rows that others measured beside their forecasts, and how far off the forecasts of each family are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moecast.validate.published.row import Use

Reading = Literal["time", "rate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAnswer:
    """One measured row and its forecast.

    Parameters
    ----------
    id, family
        Its name, and what it is judged with.
    source, configuration
        Who measured it, and the setup that it shares with rows that are no witnesses of their own.
    setting
        What it shares with rows that differ in layout or batch alone; empty where it is compared
        with none.
    unit, published
        As it was published; None where the row has no number.
    published_s
        The time that this stands for: rows are compared as times, since rates depend on what is
        counted.
    predicted, predicted_s
        The forecast, in the row's unit and as time; None where there is none.
    low, high
        Ends of the interval of errors that others of its family have, in the row's unit; None where
        too few have any.
    why
        Why there is no forecast.
    note
        What a reader must know to compare the two.

    Raises
    ------
    ValueError
        A row that is neither answered nor says why not, or a time that is not positive.
    """

    id: str
    family: str
    source: str
    configuration: str
    use: Use
    unit: str
    published: float | None
    published_s: float | None = None
    predicted: float | None = None
    predicted_s: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""
    note: str = ""
    setting: str = ""

    def __post_init__(self) -> None:
        """Check that there is a forecast or a reason."""
        if (self.predicted is None) != bool(self.why):
            raise ValueError(f"{self.id}: either predicted or why")
        for name in ("published_s", "predicted_s"):
            value = getattr(self, name)
            if (value is None) != (self.predicted is None):
                raise ValueError(f"{self.id}: {name} stands where predicted does")
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{self.id}: {name} = {value}: positive and finite")

    @property
    def error(self) -> float | None:
        """Relative error of the time."""
        if self.predicted_s is None or self.published_s is None:
            return None
        return self.predicted_s / self.published_s - 1

    @property
    def is_rate(self) -> bool:
        """Whether more of its unit is faster."""
        return "/s" in self.unit

    @property
    def judges(self) -> bool:
        """Whether errors count it: it is answered, and nothing was fitted on it."""
        return self.use == "check" and self.error is not None

    def to_json(self) -> dict[str, Any]:
        """Give the row as plain JSON values."""
        names = ("id", "family", "source", "configuration", "use", "unit", "published", "predicted", "error", "low",
                 "high", "why", "note")  # fmt: skip
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyErrors:
    """How far off the rows of a family are.

    Parameters
    ----------
    asked, answered, fitted
        Rows; those with a forecast; those that may have set parameters, and do not count in the
        errors.
    median, p90, bias
        Of the size of errors, and the median with its sign; None where no row judges.
    """

    name: str
    asked: int
    answered: int
    fitted: int
    median: float | None
    p90: float | None
    bias: float | None

    @classmethod
    def of(cls, name: str, rows: Sequence[RowAnswer]) -> FamilyErrors:
        """Summarise rows."""
        errors = [row.error for row in rows if row.judges and row.error is not None]
        answered = sum(row.predicted is not None for row in rows)
        return cls.of_errors(name, errors, asked=len(rows), answered=answered, fitted=sum(r.use == "fit" for r in rows))

    @classmethod
    def of_errors(cls, name: str, errors: Iterable[float], *, asked: int, answered: int, fitted: int) -> FamilyErrors:
        """Summarise relative errors of rows that nothing was fitted on."""
        error_R = np.fromiter(errors, np.float64)
        median = p90 = bias = None
        if error_R.size:
            median, bias = float(np.median(np.abs(error_R))), float(np.median(error_R))
            p90 = float(np.quantile(np.abs(error_R), 0.9))
        return cls(name=name, asked=asked, answered=answered, fitted=fitted, median=median, p90=p90, bias=bias)

    def to_json(self) -> dict[str, Any]:
        """Give all but the name as plain JSON values."""
        names = ("asked", "answered", "fitted", "median", "p90", "bias")
        return {name: getattr(self, name) for name in names}


def families(rows: Sequence[RowAnswer]) -> list[FamilyErrors]:
    """Errors of each family, in the order in which they first stand."""
    names = dict.fromkeys(row.family for row in rows)
    return [FamilyErrors.of(name, [row for row in rows if row.family == name]) for name in names]


def sources(rows: Sequence[RowAnswer]) -> list[tuple[str, FamilyErrors]]:
    """Errors of each source in each family: (family, errors named by the source)."""
    names = dict.fromkeys((row.family, row.source) for row in rows)
    return [
        (family, FamilyErrors.of(source, [row for row in rows if (row.family, row.source) == (family, source)]))
        for family, source in names
    ]
