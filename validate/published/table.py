"""Predicted beside published, row by row, with the error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from moecast.sim import find_rung
from moecast.validate.compare import relative_error
from moecast.validate.published.row import Row, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A row and what the simulator says of it.

    Parameters
    ----------
    rung, predicted
        What answered, and its answer in the unit of the row; None where nothing predicts it.
    published_s, predicted_s
        The times that the two stand for: kernels and steps are compared as times, since bytes per
        second depend on which bytes are counted.
    error
        Of the predicted time.
    """

    source: Source
    row: Row
    rung: str | None = None
    predicted: float | None = None
    published_s: float | None = None
    predicted_s: float | None = None
    error: float | None = None


def predict(sources: Sequence[Source]) -> list[Outcome]:
    """Ask the simulator for every row that has a question."""
    return [outcome_of(source, row) for source in sources for row in source.rows]


def outcome_of(source: Source, row: Row) -> Outcome:
    """Ask the simulator for one row."""
    if row.question is None:
        return Outcome(source=source, row=row)
    rung = find_rung(row.question.rung)
    predicted = row.question.predict(rung)
    published_s, predicted_s = row.question.seconds_of(row.value), row.question.seconds_of(predicted)
    return Outcome(
        source=source,
        row=row,
        rung=rung.name,
        predicted=predicted,
        published_s=published_s,
        predicted_s=predicted_s,
        error=relative_error(predicted_s, published_s),
    )


def mean_error(outcomes: Sequence[Outcome], use: str) -> float:
    """Mean absolute error over the predicted rows of one use, "fit" or "check"; not a number where there are none."""
    errors = [abs(outcome.error) for outcome in outcomes if outcome.error is not None and outcome.row.use == use]
    return math.fsum(errors) / len(errors) if errors else math.nan


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Write the predicted rows as a Markdown table, its notes, then how many of the rest wait for what."""
    predicted = [outcome for outcome in outcomes if outcome.error is not None]
    notes = list(dict.fromkeys(outcome.row.note for outcome in predicted if outcome.row.note))
    lines = [
        "| source | what | published | as time | predicted | error | rung | use |",
        "|---|---|---:|---:|---:|---:|---|---|",
        *(_line(outcome, notes) for outcome in predicted),
        "",
        *(f"[{number}] {note[0].upper()}{note[1:]}." for number, note in enumerate(notes, 1)),
        "",
    ]
    lines.append(
        f"Mean absolute error of time: {mean_error(outcomes, 'check'):.1%} on rows kept for "
        f"checking, {mean_error(outcomes, 'fit'):.1%} on rows that may be fitted on; rows in kind "
        "are left out."
    )
    waiting = Counter(outcome.row.why_not for outcome in outcomes if outcome.row.question is None)
    lines += [f"Not predicted, {count} row{'s' if count > 1 else ''}: {why}." for why, count in waiting.items()]
    return "\n".join(lines)


def _line(outcome: Outcome, notes: Sequence[str]) -> str:
    row = outcome.row
    assert outcome.published_s is not None
    assert outcome.predicted_s is not None
    name = f"{row.name} [{notes.index(row.note) + 1}]" if row.note else row.name
    published = f"{row.value:,g} {'µs' if row.unit == 'us' else row.unit}"
    times = f"{time_text(outcome.published_s)} | {time_text(outcome.predicted_s)} | {outcome.error:+.1%}"
    return f"| {outcome.source.name} | {name} | {published} | {times} | {outcome.rung} | {row.use} |"


def time_text(seconds: float, digits: int = 4) -> str:
    """Write a time with some digits, in µs or, from 10 ms on, in ms."""
    value, unit = (1e3 * seconds, "ms") if seconds >= 0.01 else (1e6 * seconds, "µs")
    return f"{value:,.{max(digits - len(str(int(value))), 0)}f} {unit}"
