"""Rows of serving runs, each answered by the decode step behind it, marked where more than that was measured."""

from __future__ import annotations

from dataclasses import replace

from moecast.errors import MoecastError
from moecast.sim.engines import ENGINES, NEUTRAL
from moecast.validate.published.answers import RowAnswer
from moecast.validate.published.row import Use
from moecast.validate.published.serving import LITTLE_PREFILL, Fields, ServingRow

UNREAD = "serving rows that say too little"


def answer_serving(fields: Fields, *, network: str = "bound") -> RowAnswer:
    """Forecast the time per output token of a row, or say why not."""
    try:
        row = ServingRow.of(fields)
        if row.tpot_ms <= 0:
            raise ValueError(f"tpot_mean_ms = {row.tpot_ms:g}: a positive number")
    except ValueError as error:
        return RowAnswer(
            id=fields["id"],
            family=UNREAD,
            source=fields.get("engine") or "unknown",
            configuration=fields["id"],
            use="check",
            unit="ms",
            published=None,
            why=str(error),
        )
    use: Use = "fit" if row.use == "fit" else "check"
    about = {
        "id": row.id,
        "family": row.family,
        "source": f"{row.engine} on {row.gpu}",
        "use": use,
        "configuration": configuration_of(row),
        "setting": setting_of(row),
        "unit": "ms",
        "published": row.tpot_ms,
    }
    known = row.engine in {engine.name for engine in ENGINES}
    try:
        predicted_ms = (row if known else replace(row, engine=NEUTRAL.name)).predict_ms(network=network)
    except (MoecastError, ValueError) as error:
        return RowAnswer(why=str(error), **about)  # type: ignore[arg-type]
    notes = [note_of(row), "" if known else f"{row.engine} is not known: the neutral engine stands for it"]
    return RowAnswer(
        published_s=row.tpot_ms / 1e3,
        predicted_s=predicted_ms / 1e3,
        predicted=predicted_ms,
        note="; ".join(filter(None, notes)),
        **about,  # type: ignore[arg-type]
    )


def configuration_of(row: ServingRow) -> str:
    """What rows share that differ in concurrency alone."""
    return f"{setting_of(row)} tp{row.tp} dp{row.dp} ep{row.ep} etp{row.etp}"


def setting_of(row: ServingRow) -> str:
    """What rows share that differ in layout and concurrency alone."""
    model = row.model.rsplit("/", 1)[-1]
    return f"{model} {row.gpu} {row.engine} {row.precision} {row.mode} {row.isl}/{row.osl}"


def note_of(row: ServingRow) -> str:
    """What was measured beside a decode step."""
    if row.mode == "disagg":
        return "" if row.batch >= row.stated else f"{row.batch:g} of {row.stated:g} sequences in flight"
    share = row.prefill_share
    if share <= LITTLE_PREFILL:
        return ""
    return f"prefill takes {share:.0%} of the time or more: the forecast is of the decode step alone"
