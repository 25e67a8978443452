"""The page of `moecast plan`, as a reader opens it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moecast.cli import plan_beside, planning
from moecast.placement.layouts import LayoutAnswers, Slo, find_serving
from moecast.processes import Workers
from moecast.report import plan_figures
from moecast.report.plan_page import write_plan_page
from tests.layouts.test_serving import QUESTIONS
from tests.report.browser import assert_page_is_whole, find_chromium


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    """What the command prints as JSON."""
    workers = Workers(LayoutAnswers(QUESTIONS[0]))
    found = find_serving(QUESTIONS[0], 2, Slo(tpot_s=0.004), scored=8, placed=2, network="bound", workers=workers)
    asked: Any = SimpleNamespace(overrides=())
    value = planning.answer(found, workers, asked, hourly=3.0, plan_file=None)
    return value | {"requests": None, "sensitivity": plan_beside.moved(found, workers, None)}


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(answer: dict[str, Any], width: int, tmp_path: Path) -> None:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on the path")
    write_plan_page(answer, planning.winner_rows(answer), tmp_path / "p.html")
    assert assert_page_is_whole(executable, tmp_path / "p.html", width=width) >= 5


def test_a_page_without_sensitivity_is_a_page(answer: dict[str, Any], tmp_path: Path) -> None:
    write_plan_page(answer | {"sensitivity": None}, planning.winner_rows(answer), tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "The winner&#39;s step" in text or "The winner's step" in text
    assert "What the answer hangs on" not in text


def test_bars_of_the_tornado_begin_at_the_winner_and_end_at_the_ends(answer: dict[str, Any]) -> None:
    now, moves = answer["winner"]["tokens_per_s_per_gpu"], answer["sensitivity"]["moves"]
    bars = {
        (row, round(base + length, 6))
        for trace in plan_figures.tornado(moves, now).data
        for row, length, base in zip(trace.y, trace.x, [trace.base] * len(trace.x), strict=True)
    }
    assert bars == {
        (move["parameter"], round(end["tokens_per_s_per_gpu"], 6)) for move in moves for end in move["ends"]
    }


def test_spans_of_the_timeline_lie_within_their_step(answer: dict[str, Any]) -> None:
    step = answer["timeline"]
    assert step["spans"]
    for span in step["spans"]:
        assert 0 <= span["start_s"] <= span["end_s"] <= step["step_s"] * (1 + 1e-9)
        assert 0 <= span["idle_s"] <= (span["end_s"] - span["start_s"]) * (1 + 1e-9)
