"""The page of a search for a layout: the winner, its numbers and pictures, what it hangs on, and what to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moecast.files import write_text
from moecast.report.html import render_page
from moecast.report.plan_serving_page import serving_content
from moecast.report.plan_training_page import training_content


def write_plan_page(answer: Mapping[str, Any], rows: Sequence[tuple[str, str]], path: str | Path) -> None:
    """Write what `moecast plan` found as one self-contained HTML file, whole or not at all.

    Parameters
    ----------
    answer
        As `moecast plan --json` prints it, for serving or for training.
    rows
        The names and texts of its table.
    """
    write_text(path, render(answer, rows))


def render(answer: Mapping[str, Any], rows: Sequence[tuple[str, str]]) -> str:
    """The page as text."""
    content = (training_content if answer["for"] == "training" else serving_content)(answer)
    return render_page(
        "plan.html.j2",
        title=answer["question"]["model"],
        lead=content.lead,
        model=content.model,
        cards=content.cards,
        rows=[row for row in rows if row[0] not in content.on_top],
        winner=answer["winner"]["name"],
        all=content.pictures,
        moves=(answer["sensitivity"] or {}).get("moves", []),
        launch=answer["launch"],
        notes=answer["notes"],
    )
