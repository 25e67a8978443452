"""The page of `moecast plan --for training`, and what its tornado and its pipeline are drawn from."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moecast.cli import plan_training_text
from moecast.placement.layouts.moves import training_moves
from moecast.placement.layouts.training import (
    FoundTraining,
    TimedLayout,
    TrainingFloors,
    TrainingScores,
    find_training,
)
from moecast.placement.layouts.training.sensitivity import training_sensitivity
from moecast.report.plan_page import write_plan_page
from moecast.sim.network import find_rung
from moecast.sim.training import HostWait
from moecast.sim.training.simulate import draw_microbatches, time_training
from tests.layouts.training_cases import QUESTIONS, SMALL
from tests.report.browser import assert_page_is_whole, find_chromium

ASKED = QUESTIONS[0]


@pytest.fixture(scope="module")
def found() -> FoundTraining:
    return find_training(ASKED, 4, space=SMALL, scored=8, timed=2)


@pytest.fixture(scope="module")
def answer(found: FoundTraining) -> dict[str, Any]:
    """What the command prints as JSON."""
    asked: Any = SimpleNamespace(overrides=(), unused=())
    value = plan_training_text.answer(found, ASKED, asked, hourly=2.5, plan_file=None)
    return value | {"sensitivity": training_sensitivity(ASKED, found)}


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(answer: dict[str, Any], width: int, tmp_path: Path) -> None:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on the path")
    write_plan_page(answer, plan_training_text.winner_rows(answer), tmp_path / "p.html")
    assert assert_page_is_whole(executable, tmp_path / "p.html", width=width) == 4


def test_a_page_without_sensitivity_is_a_page(answer: dict[str, Any], tmp_path: Path) -> None:
    write_plan_page(answer | {"sensitivity": None}, plan_training_text.winner_rows(answer), tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "pretrain_gpt.py" in text
    assert "What the answer hangs on" not in text


def test_passes_fill_the_winners_ranks_and_never_two_at_once(answer: dict[str, Any]) -> None:
    passes = answer["passes"]
    assert {span["rank"] for span in passes["spans"]} == set(range(passes["ranks"]))
    for rank in range(passes["ranks"]):
        spans = sorted((span["start_s"], span["end_s"]) for span in passes["spans"] if span["rank"] == rank)
        assert all(end <= start * (1 + 1e-9) for (_, end), (start, _) in pairwise(spans))
    assert max(span["end_s"] for span in passes["spans"]) <= answer["winner"]["step_time_s"] * 1.25


@pytest.fixture(scope="module")
def spread(found: FoundTraining) -> FoundTraining:
    """The same with a winner that sends tokens to experts."""
    layout = next(one for one in found.fitted.layouts if one.ep == 4 and one.schedule == "1f1b" and one.microbatch == 1)
    one = TimedLayout(layout=layout, prediction=TrainingScores(ASKED, TrainingFloors(ASKED)).whole(layout))
    return replace(found, winner=one, timed=(one,), runner_up=None)


def test_a_move_changes_a_whole_step_as_much_as_its_layers_say(spread: FoundTraining) -> None:
    """The whole step's own program, changed, is the judge."""
    layout = spread.winner.layout
    recipe, plan = layout.recipe(ASKED.recipe), layout.plan(ASKED.model)
    steps = draw_microbatches(
        ASKED.trace, recipe, ranks=layout.dp, drawn=1, from_phase=ASKED.from_phase, seed=ASKED.seed
    )
    timed = time_training(ASKED.cluster, ASKED.model, plan, ASKED.trace, recipe, schedule=layout.schedule, steps=steps)
    told = {move["parameter"]: move["ends"] for move in training_sensitivity(ASKED, spread)["moves"]}
    for move in training_moves(ASKED)[:4]:  # of tasks
        for end, change in zip(told[move.parameter], move.ends, strict=True):
            whole_s = find_rung("bound").run(change.of(timed.program, ASKED.cluster)).step_time_s
            assert end["change"] == pytest.approx(timed.times.step_time_s / whole_s - 1, abs=0.03)


def test_waits_for_hosts_are_those_of_whole_steps(spread: FoundTraining) -> None:
    moves = {move["parameter"]: move["ends"] for move in training_sensitivity(ASKED, spread)["moves"]}
    recipe = replace(ASKED.recipe, host=HostWait(fixed_s=0.011))
    waiting = replace(ASKED, recipe=recipe)
    whole_s = TrainingScores(waiting, TrainingFloors(ASKED)).whole(spread.winner.layout).step_time_s
    assert [end["step_time_s"] for end in moves["waits for hosts"]] == [whole_s]
    assert whole_s > spread.winner.step_s
    large = training_sensitivity(ASKED, replace(spread, gpus=2048))
    assert "waits for hosts" not in {move["parameter"] for move in large["moves"]}
