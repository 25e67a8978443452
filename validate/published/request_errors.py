"""Errors of serving forecasts: shipped rows asked request by request, for TTFT, TPOT and throughput."""

from __future__ import annotations

from collections.abc import Callable

from moecast.sim.accuracy.known_errors import SERVED
from moecast.validate.published.answers import RowAnswer
from moecast.validate.published.request_runs import answer_requests
from moecast.validate.published.row_files import SHIPPED, read_rows

Progress = Callable[[int, int], None]


def ask_requests(*, only: str = "", network: str = "bound", progress: Progress | None = None) -> tuple[RowAnswer, ...]:
    """Run every shipped serving row whose id has a part in it, and answer each of its measures."""
    rows = [fields for fields in read_rows(SHIPPED / "serving.csv").rows if only in fields["id"]]
    answers: list[RowAnswer] = []
    for done, fields in enumerate(rows, 1):
        answers += [answer_requests(fields, measure, network=network) for measure in SERVED]
        if progress is not None:
            progress(done, len(rows))
    return tuple(answers)
