"""Errors of serving forecasts: shipped rows asked request by request, for TTFT, TPOT and throughput; and prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from moecast.sim.accuracy.known_errors import PROMPTS, SERVED
from moecast.sim.engines import find_engine
from moecast.validate.published.answers import RowAnswer
from moecast.validate.published.request_runs import answer_requests
from moecast.validate.published.row_files import SHIPPED, Fields, read_rows
from moecast.validate.published.serving import MEAN_LENGTH, ServingRow

Progress = Callable[[int, int], None]
TTFT = ": ttft"

FEW = 4
"""Requests in flight up to which hardly any prompt waits for another."""


def ask_requests(*, only: str = "", network: str = "bound", progress: Progress | None = None) -> tuple[RowAnswer, ...]:
    """Run every shipped serving row whose id has a part in it, and answer each of its measures."""
    rows = [fields for fields in read_rows(SHIPPED / "serving.csv").rows if only in fields["id"]]
    answers: list[RowAnswer] = []
    for done, fields in enumerate(rows, 1):
        answers += [answer_requests(fields, measure, network=network) for measure in SERVED]
        if progress is not None:
            progress(done, len(rows))
    return (*answers, *prompt_rows(answers))


def prompt_rows(answers: Sequence[RowAnswer]) -> tuple[RowAnswer, ...]:
    """Of rows with few in flight and all on the same GPUs, the prompt inside its engine: what prefill steps rest on.

    What an engine and its hosts add to each request, which they set in `sim/engines/`, is left out
    of both times. A row that was faster than that says nothing and is left out.
    """
    fields = {row["id"]: row for row in read_rows(SHIPPED / "serving.csv").rows}
    found = (
        _prompt_row(answer, fields[answer.id.removesuffix(TTFT)]) for answer in answers if answer.id.endswith(TTFT)
    )
    return tuple(row for row in found if row is not None)


def _prompt_row(answer: RowAnswer, fields: Fields) -> RowAnswer | None:
    if answer.published_s is None or answer.predicted_s is None or fields["mode"] != "agg":
        return None
    row = ServingRow.of(fields)
    tokens_Q = np.array([MEAN_LENGTH * row.isl])
    outside_s = float(find_engine(row.engine).outside_s(tokens_Q, gpu=row.gpu, apart=False)[0])
    published_s, predicted_s = answer.published_s - outside_s, answer.predicted_s - outside_s
    if row.concurrency > FEW or min(published_s, predicted_s) <= 0:
        return None
    return replace(
        answer,
        id=f"{row.id}: prompt",
        family=PROMPTS,
        published=published_s * 1e3,
        published_s=published_s,
        predicted=predicted_s * 1e3,
        predicted_s=predicted_s,
    )
