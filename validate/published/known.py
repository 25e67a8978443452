"""Known errors from published rows: what ships of them, and the interval that each row gets from the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moecast.sim.accuracy import (
    JudgedRow,
    KnownErrors,
    KnownFamily,
    interval_of,
    known_errors,
)
from moecast.validate.published.answers import FamilyErrors, RowAnswer
from moecast.validate.published.pairs import paired_errors

Float = npt.NDArray[np.float64]


def judged_rows(rows: Sequence[RowAnswer]) -> tuple[JudgedRow, ...]:
    """The rows that set nothing and have a forecast."""
    return tuple(judged_row(row) for row in rows if row.judges)


def judged_row(row: RowAnswer) -> JudgedRow:
    """A row with its error."""
    assert row.predicted_s is not None
    assert row.published_s is not None
    return JudgedRow(
        id=row.id,
        family=row.family,
        source=row.source,
        configuration=row.configuration,
        setting=row.setting,
        predicted_s=row.predicted_s,
        error=math.log(row.published_s / row.predicted_s),
    )


def errors_of(
    rows: Sequence[RowAnswer],
    families: Sequence[FamilyErrors],
    *,
    network: str,
) -> KnownErrors:
    """What is known after these rows."""
    judged = judged_rows(rows)
    summed = []
    for family in families:
        own = [row for row in judged if row.family == family.name]
        counts = len(own), len({row.configuration for row in own}), len({row.source for row in own})
        summed.append(known_family(family, *counts))
    paired = any(row.setting for row in judged)
    pairs = {kind: paired_errors(judged, kind=kind) for kind in (("batch", "layout") if paired else ())}
    return KnownErrors(network=network, families=tuple(summed), rows=judged, pairs=pairs)


def known_family(found: FamilyErrors, rows: int, configurations: int, sources: int) -> KnownFamily:
    """A family's errors, and how many rows count in them, of how many setups and sources."""
    return KnownFamily(
        name=found.name,
        asked=found.asked,
        answered=found.answered,
        fitted=found.fitted,
        rows=rows,
        configurations=configurations,
        sources=sources,
        median=found.median,
        p90=found.p90,
        bias=found.bias,
    )


def with_intervals(rows: Sequence[RowAnswer]) -> list[RowAnswer]:
    """Give each row with a forecast the interval of others of its family: its own configuration is left out."""
    known = known_errors()
    of = {row.family: known.of(row.family) for row in rows}
    return [_with_interval(row, of[row.family]) for row in rows]


def _with_interval(row: RowAnswer, others: Sequence[JudgedRow]) -> RowAnswer:
    found = interval_of(others, source=row.source, without=row.configuration)
    if row.predicted is None or found is None:
        return row
    low, high = found.of(row.predicted)
    if row.is_rate:
        low, high = row.predicted / found.high, row.predicted / found.low
    return replace(row, low=low, high=high)


def coverage(rows: Sequence[JudgedRow], *, leave_out: str) -> tuple[int, int, float]:
    """Count rows inside the interval that the others of their family give: (inside, asked, mean width in ln).

    Parameters
    ----------
    leave_out
        "configuration" or "source": what of the row's own is left out.
    """
    inside, widths = 0, []
    for name in sorted({getattr(row, leave_out) for row in rows}):
        others = [row for row in rows if getattr(row, leave_out) != name]
        for row in (row for row in rows if getattr(row, leave_out) == name):
            found = interval_of(others, source=row.source)
            if found is None:
                continue
            inside += found.low <= math.exp(row.error) <= found.high
            widths.append(math.log(found.high / found.low))
    return inside, len(widths), float(np.mean(widths)) if widths else math.nan
