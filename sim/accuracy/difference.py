"""The difference of two plans' forecasts: an error that both share cancels, and what is left decides who is faster.

What is left is known from pairs of measured rows of one engine, GPU, model and lengths: those that
differ in layout, and those of one layout that differ in batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moecast.sim.accuracy.grounds import DECODE, NO_ROWS
from moecast.sim.accuracy.known_errors import known_errors, steady_errors

if TYPE_CHECKING:
    from moecast.sim.accuracy.known_errors import PairedErrors
    from moecast.sim.prediction_values import PredictionValues

LAYOUT_FIELDS = ("ranks", "groups", "ep", "etp", "tp", "cp", "dp", "pp", "sequence_parallel", "dispatch")
"""What of a plan's description is its layout, and how tokens move in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much faster one plan is than another of the same question.

    Parameters
    ----------
    ratio
        Time of the other plan ÷ time of this one: above 1 where this one is faster.
    low, high
        80 % interval of the measured ratio; None where nothing measured speaks for it.
    why
        What the interval rests on, or why there is none.
    """

    ratio: float
    low: float | None
    high: float | None
    why: str

    @property
    def shown(self) -> bool | None:
        """Whether the interval leaves out 1: that there is a difference; None where there is no interval."""
        return None if self.low is None or self.high is None else not self.low <= 1 <= self.high

    @property
    def text(self) -> str:
        """The verdict in a few words."""
        if self.low is None or self.high is None:
            return "no interval"
        return f"{self.low:.3f} to {self.high:.3f}×" if self.shown else "no difference shown"


def difference_of(this: PredictionValues, other: PredictionValues) -> Difference:
    """Compare two forecasts of one question with two plans."""
    ratio = other.compared_s / this.compared_s
    families = {_family(this), _family(other)}
    if len(families) > 1 or not families <= set(DECODE):
        return Difference(ratio=ratio, low=None, high=None, why=f"{NO_ROWS}: no pairs of such rows were measured")
    same = _layout(this.plan) == _layout(other.plan)
    differ = (
        "the plans differ in placement alone, and no such pair was measured: pairs of one layout "
        "at two batches say how a forecast follows its load"
        if same
        else "pairs of rows that differ in layout"
    )
    return _by_pairs(ratio, "batch" if same else "layout", differ)


def layouts_apart(ratio: float, *, steady: bool = False) -> Difference:
    """Compare the rates of two layouts, `ratio` of the better one's to the other's, by measured pairs of layouts.

    Parameters
    ----------
    steady
        Prompts and decode steps of both take turns on the same GPUs.
    """
    differ = "pairs of serving runs that differ in layout" if steady else "pairs of rows that differ in layout"
    return _by_pairs(ratio, "layout", differ, steady_errors().pairs if steady else None)


def _by_pairs(ratio: float, kind: str, differ: str, known: Mapping[str, PairedErrors] | None = None) -> Difference:
    pairs = (known or known_errors().pairs)[kind]
    half = pairs.floor + pairs.slope * abs(math.log(ratio))
    why = f"{differ} ({pairs.pairs} pairs of {pairs.settings} settings)"
    return Difference(ratio=ratio, low=ratio * math.exp(-half), high=ratio * math.exp(half), why=why)


def _family(prediction: PredictionValues) -> str:
    return str(prediction.rests_on.get("errors", "")) if prediction.interval_s is not None else ""


def _layout(plan: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(plan.get(name) for name in LAYOUT_FIELDS)
