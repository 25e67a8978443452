"""What a solver says of its plan is shown whichever command prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moecast.placement import Placement, place, place_by_load
from moecast.report import Entry
from moecast.report.rows import table_rows
from moecast.sim import Plan, Workload, read_plan, simulate, write_plan

from .test_by_load import table_of
from .test_invariants import skewed_trace, small_cluster, small_model

GIVEN = "only balance can be gained"


def placed(phase: str, **more: object) -> Placement:
    trace = skewed_trace(3, layers=1, experts=16, choices=2, tokens=512, phase=phase)
    workload = Workload(phase=phase, tokens_per_rank=4, steps=2)
    return place(small_cluster(1), small_model(1, 16, 2), trace, workload, solver="contiguous", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("phase", "dispatch", "given"),
    [
        ("decode", None, True),
        ("decode", "per_rank", False),
        ("prefill", None, False),
        ("prefill", "per_choice", True),
    ],
)
def test_copies_that_no_placement_changes_are_said(phase: str, dispatch: str | None, given: bool) -> None:
    assert (GIVEN in placed(phase, dispatch=dispatch).note) is given


@pytest.mark.parametrize("rule", ["nearest", "fixed"])
def test_copies_that_near_replicas_save_are_said(rule: str) -> None:
    for note in (
        placed("decode", replica_rule=rule).note,
        place_by_load(table_of(np.arange(1, 17)[None]), ep=8, dispatch="per_choice", replica_rule=rule).note,  # type: ignore[arg-type]
    ):
        assert GIVEN not in note
        assert "replicas near their tokens save some" in note


def test_by_load_says_it_where_the_mode_is_named() -> None:
    table = table_of(np.arange(1, 17)[None])
    assert GIVEN in place_by_load(table, ep=8, dispatch="per_choice").note
    assert GIVEN in place_by_load(table, ep=8, dispatch="per_choice").plan.made_by.note
    assert GIVEN not in place_by_load(table, ep=8).note


def test_the_note_stays_with_the_plan(tmp_path: Path) -> None:
    found = placed("decode", slots_per_rank=3, fill=True)
    assert "8 empty slots were filled" in found.note
    write_plan(found.plan, tmp_path / "plan.json")
    plan = read_plan(tmp_path / "plan.json")
    assert plan.made_by.note == found.note
    trace = skewed_trace(4, layers=1, experts=16, choices=2, tokens=512, phase="decode")
    asked = Workload(phase="decode", tokens_per_rank=4, steps=2)
    prediction = simulate(small_cluster(1), small_model(1, 16, 2), plan, trace, asked, network="bound", gains=False)
    assert f"solver's note (contiguous): {found.note}" in prediction.warnings
    rows = {row.name: row.texts for row in table_rows([Entry(plan="plan", prediction=prediction)])}
    assert rows["wasted slots"] == ("0",)
    assert float(rows["fan-out, domains"][0]) == pytest.approx(prediction.fan_out_domains)


def test_older_plan_files_have_no_note() -> None:
    value = Plan.contiguous(layers=1, experts=4, choices=2, ep=2).to_json()
    del value["made_by"]["note"]
    assert Plan.from_json(value).made_by.note == ""
