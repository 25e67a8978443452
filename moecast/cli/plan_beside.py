"""What `moecast plan` asks of its best layouts beside the search: requests, and what the answer hangs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from moecast.placement.layouts import FoundServing, LayoutAnswers, ServingQuestion
    from moecast.processes import Workers
    from moecast.sim.serving import ArrivalLaw

Progress = Callable[[str, int, int], None]


def parse_law(text: str | None) -> ArrivalLaw | None:
    """Read how requests come; None: nobody asked.

    Raises
    ------
    MoecastError
        No law.
    """
    if text is None:
        return None
    from moecast.sim.serving import parse_arrivals

    return parse_arrivals(text)


def served(
    question: ServingQuestion, found: FoundServing, law: ArrivalLaw | None, progress: Progress | None
) -> dict[str, Any] | None:
    """What requests see of the best layouts, as plain JSON values; None where none were asked for."""
    if law is None:
        return None
    from moecast.placement.layouts.by_requests import by_requests

    runs = by_requests(question, found, law, progress=progress)
    return {"arrivals": str(law), "runs": [run.to_json(found.slo) for run in runs]}


def moved(found: FoundServing, workers: Workers[LayoutAnswers], progress: Progress | None) -> dict[str, Any]:
    """How the answer moves with what is uncertain, as plain JSON values."""
    from moecast.placement.layouts.sensitivity import sensitivity

    return sensitivity(workers.given.question, found, progress=progress, workers=workers).to_json()


def tables(value: Mapping[str, Any]) -> Iterator[Table]:
    """Both as tables, where they were asked for."""
    from moecast.placement.layouts.by_requests import requests_rows
    from moecast.placement.layouts.told import sensitivity_rows

    if value["requests"] is not None:
        runs = value["requests"]
        seen = ("ttft mean, p99", "tpot mean, p99", "tokens/s per GPU", "limits", "layout")
        yield table_of(f"by requests, {runs['arrivals']}", seen, requests_rows(runs["runs"]))
    if value["sensitivity"] is not None:
        ends = ("parameter", "winner's tokens/s per GPU", "limits", "best there")
        yield table_of("if this is off by its own error", ends, sensitivity_rows(value["sensitivity"]["moves"]))


def table_of(title: str, names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """Rows under a title; long texts are folded."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
