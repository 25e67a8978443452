"""Rows of serving runs of one kind of instance, each answered by its steady state: decode steps and prompts in turn.

What is compared is GPU seconds of an output token, 1 / (tokens/s of a GPU): a search for a layout
orders by it. Batch in flight is the measured one, so that the time per output token is off by as
much.
"""

from __future__ import annotations

from dataclasses import replace

from moecast.errors import MoecastError
from moecast.sim.accuracy import STEADY
from moecast.sim.engines import ENGINES, NEUTRAL
from moecast.validate.published.answers import RowAnswer
from moecast.validate.published.decode import configuration_of, setting_of
from moecast.validate.published.row_files import SHIPPED, read_rows
from moecast.validate.published.serving import Fields, ServingRow
from moecast.validate.published.serving_rate import predicted_tpot_ms, tokens_per_s_per_gpu


def answer_steady(fields: Fields, *, network: str = "bound") -> RowAnswer | None:
    """Forecast a row; None where prompts ran on other GPUs or it has no time or rate of its own."""
    try:
        row = ServingRow.of(fields)
        measured = tokens_per_s_per_gpu(row, fields, row.tpot_ms)
    except (KeyError, ValueError, ZeroDivisionError):
        return None
    if row.mode != "agg" or measured <= 0:
        return None
    about = {
        "id": row.id,
        "family": STEADY,
        "source": f"{row.engine} on {row.gpu}",
        "configuration": configuration_of(row),
        "setting": setting_of(row),
        "use": "fit" if row.use == "fit" else "check",
        "unit": "tokens/s of a GPU",
        "published": measured,
    }
    known = row.engine in {engine.name for engine in ENGINES}
    try:
        asked = row if known else replace(row, engine=NEUTRAL.name)
        predicted = tokens_per_s_per_gpu(row, fields, predicted_tpot_ms(asked, fields, network=network))
    except (MoecastError, ValueError) as error:
        return RowAnswer(why=str(error), **about)  # type: ignore[arg-type]
    return RowAnswer(published_s=1 / measured, predicted_s=1 / predicted, predicted=predicted, **about)  # type: ignore[arg-type]


def ask_steady(*, only: str = "", network: str = "bound") -> tuple[RowAnswer, ...]:
    """Forecast every shipped row of one kind of instance whose id has a part in it."""
    rows = read_rows(SHIPPED / "serving.csv").rows
    asked = (answer_steady(fields, network=network) for fields in rows if only in fields["id"])
    return tuple(row for row in asked if row is not None)
