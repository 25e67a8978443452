"""The rows of the comparison table, once for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moecast.report.comparison import Entry, differences
from moecast.sim import Prediction
from moecast.sim.accuracy import difference_of
from moecast.sim.quantities import quantities_of
from moecast.units import format_percent, format_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    `best` holds the columns with the best value, to be shown as such; empty where no value is
    better than another.
    """

    group: str
    name: str
    texts: tuple[str, ...]
    best: frozenset[int] = frozenset()


def table_rows(columns: Sequence[Entry]) -> list[Row]:
    """The comparison of one phase: a row per quantity, a column per rung and plan.

    Within a rung, the first plan is what speed-ups are counted from, and the best value of each row
    is marked. Where the questions differ, what differs is said first, and nothing is a speed-up or
    best.
    """
    predictions = [entry.prediction for entry in columns]
    rungs = [prediction.network for prediction in predictions]
    differing = differences(predictions)
    rows = [Row(group="Question", name=f"differs: {name}", texts=texts) for name, texts in differing.items()]
    for quantity in quantities_of(predictions):
        values = [quantity.value(prediction) for prediction in predictions]
        texts = tuple(quantity.shown(prediction) for prediction in predictions)
        better = "" if differing else quantity.better
        best = frozenset(i for rung in dict.fromkeys(rungs) for i in _best(values, texts, rungs, rung, better))
        rows.append(Row(group=quantity.group, name=quantity.name, texts=texts, best=best))
        if quantity.name == "step time" and len(values) > 1 and not differing:
            rows += _speedup(predictions, rungs)
    return rows + _solver_rows(columns)


def _speedup(predictions: Sequence[Prediction], rungs: list[str]) -> list[Row]:
    """What each plan gains over the first of its rung, and the 80 % interval of that difference."""
    firsts = [rungs.index(rung) for rung in rungs]
    found = [
        difference_of(prediction, predictions[first]) for prediction, first in zip(predictions, firsts, strict=True)
    ]
    gains = tuple("1" if i == first else f"{found[i].ratio:.3f}×" for i, first in enumerate(firsts))
    spread = tuple("–" if i == first else found[i].text for i, first in enumerate(firsts))
    return [
        Row(group="Time", name="  speed-up", texts=gains),
        Row(group="Time", name="  80 % of speed-up", texts=spread),
    ]


def _best(values: list[Any], texts: tuple[str, ...], rungs: list[str], rung: str, better: str) -> list[int]:
    """The columns of a rung that print the best value; none where all print the same."""
    own = [i for i, name in enumerate(rungs) if name == rung and values[i] is not None]
    if not better or len({texts[i] for i in own}) < 2:
        return []
    aim = (min if better == "low" else max)(own, key=lambda i: values[i])
    return [i for i in own if texts[i] == texts[aim]]


def _solver_rows(columns: Sequence[Entry]) -> list[Row]:
    wasted = tuple(str(entry.prediction.plan.get("wasted_slots", "–")) for entry in columns)
    rows = [Row(group="Placement", name="wasted slots", texts=wasted)]
    made = [entry.placement for entry in columns]
    if not any(made):
        return rows
    lines: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("objective on the planning part", "objective_s", format_s),
        ("certificate: no plan can beat", "bound_s", format_s),
        ("gap", "gap", format_percent),
        ("solver's time", "seconds", format_s),
    )
    return rows + [
        Row(
            group="Placement",
            name=name,
            texts=tuple("–" if m is None or m.get(key) is None else text(m[key]) for m in made),
        )
        for name, key, text in lines
    ]
