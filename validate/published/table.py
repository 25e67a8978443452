"""Predicted beside published, row by row, with the error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moecast.sim import find_rung
from moecast.validate.compare import relative_error
from moecast.validate.published.row import Row, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A row and what the simulator says of it; `predicted` and `error` are None where nothing predicts it."""

    source: Source
    row: Row
    rung: str | None
    predicted: float | None
    error: float | None


def predict(sources: Sequence[Source]) -> list[Outcome]:
    """Ask the simulator for every row that has a question."""
    return [_outcome(source, row) for source in sources for row in source.rows]


def _outcome(source: Source, row: Row) -> Outcome:
    if row.question is None:
        return Outcome(source=source, row=row, rung=None, predicted=None, error=None)
    rung = find_rung(row.question.rung)
    predicted = row.question.predict(rung)
    return Outcome(
        source=source, row=row, rung=rung.name, predicted=predicted, error=relative_error(predicted, row.value)
    )


def mean_error(outcomes: Sequence[Outcome], use: str) -> float:
    """Mean absolute error over the predicted rows of one use, "fit" or "check"; not a number where there are none."""
    errors = [abs(outcome.error) for outcome in outcomes if outcome.error is not None and outcome.row.use == use]
    return math.fsum(errors) / len(errors) if errors else math.nan


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Write the predicted rows as a Markdown table, then how many of the rest wait for what."""
    lines = ["| source | what | published | predicted | error | rung | use |", "|---|---|---:|---:|---:|---|---|"]
    waiting: dict[str, int] = {}
    for outcome in outcomes:
        row = outcome.row
        if outcome.predicted is None or outcome.error is None:
            waiting[row.why_not] = waiting.get(row.why_not, 0) + 1
            continue
        numbers = f"{row.value:,g} {row.unit} | {_four_digits(outcome.predicted)} {row.unit} | {outcome.error:+.1%}"
        lines.append(f"| {outcome.source.name} | {row.name} | {numbers} | {outcome.rung} | {row.use} |")
    lines.append("")
    lines.append(
        f"Mean absolute error: {mean_error(outcomes, 'check'):.1%} on rows kept for checking, "
        f"{mean_error(outcomes, 'fit'):.1%} on rows that may be fitted on."
    )
    lines += [f"Not predicted, {count} rows: {why}." for why, count in waiting.items()]
    return "\n".join(lines)


def _four_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
