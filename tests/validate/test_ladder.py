"""The ladder: rungs in order, errors against the rung above, measurements of the same question only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import simulate
from moecast.validate import Measurement, read_measurement, validate, write_measurement
from moecast.validate.compare import relative_error
from moecast.validate.identity import question_hashes
from moecast.validate.ladder import RungResult, with_errors
from tests.validate.cases import Question, question


def measurement(asked: Question, **changes: Any) -> Measurement:
    times = tuple(tuple((1e-4 * (layer + 1),) * 4 for layer in range(3)) for _ in range(2))
    fields: dict[str, Any] = {
        **question_hashes(asked.plan, asked.trace, asked.workload),
        "model": "narrow",
        "dispatch": "nccl",
        "ranks": 4,
        "layers": 3,
        "steps": 2,
        "dispatch_s_WLG": times,
        "combine_s_WLG": times,
        "expert_s_WLG": None,
        "dispatch_bytes": 1.0,
        "combine_bytes": 2.0,
        "row_bytes": {"dispatch": 64, "combine": 64},
        "rows_checked": 3,
        "repeats": 5,
        "warmup": 2,
        "backend": "nccl",
        "hardware": ("NVIDIA H200",) * 4,
        "software": {"torch": "2"},
        "date": "2025-01-01T00:00:00+00:00",
    }
    return Measurement(**(fields | changes))


@given(seed=st.integers(0, 100), mode=st.sampled_from(["per_choice", "per_rank", "per_domain", "nccl"]))
@settings(max_examples=10, deadline=None)
def test_bound_is_below_fluid(seed: int, mode: str) -> None:
    asked = question(ranks=4, groups=2, seed=seed)
    ladder = validate(replace(asked, plan=asked.plan.with_(dispatch=mode)).whole)
    assert [rung.rung for rung in ladder.rungs] == ["bound", "fluid", "packet", "lab", "hardware"]
    bound, fluid = ladder.rungs[:2]
    assert 0 < bound.step_time_s <= fluid.step_time_s * (1 + 1e-9)
    assert 0 < bound.exchange_s <= fluid.exchange_s * (1 + 1e-9)
    assert bound.step_error == pytest.approx(bound.step_time_s / fluid.step_time_s - 1)
    assert all(rung.not_run and rung.step_time_s is None for rung in ladder.rungs[2:])


def test_step_times_are_those_of_simulate() -> None:
    asked = question(ranks=4)
    ladder = validate(asked.whole)
    for rung in ladder.rungs[:2]:
        prediction = simulate(*asked.arguments, network=rung.rung)
        assert rung.step_time_s == pytest.approx(prediction.step_time_s, rel=1e-12)


def test_a_measurement_becomes_the_top_rung() -> None:
    asked = question(ranks=4)
    measured = measurement(asked)
    assert measured.exchange_s == pytest.approx(2 * (1 + 2 + 3) * 1e-4)
    assert measured.layer_s("dispatch") == pytest.approx((1e-4, 2e-4, 3e-4))
    ladder = validate(asked.whole, measurement=measured)
    assert ladder.question["dispatch"] == "nccl"
    assert ladder.rungs[-1].exchange_s == measured.exchange_s
    assert ladder.rungs[1].exchange_error == pytest.approx(ladder.rungs[1].exchange_s / measured.exchange_s - 1)
    assert ladder.rungs[0].exchange_error == pytest.approx(ladder.rungs[0].exchange_s / ladder.rungs[1].exchange_s - 1)
    assert set(ladder.layer_errors) == {"bound", "fluid"}


def test_other_hardware_is_shown_but_nothing_is_held_against_it() -> None:
    asked = question(ranks=4)
    measured = measurement(asked, hardware=("NVIDIA H200", "CPU (x86_64)", "NVIDIA H200", "NVIDIA H200"))
    ladder = validate(asked.whole, measurement=measured)
    assert ladder.rungs[-1].exchange_s == measured.exchange_s
    assert "CPU (x86_64)" in ladder.rungs[-1].elsewhere
    assert ladder.rungs[1].exchange_error is None
    assert not ladder.layer_errors


def test_a_measurement_of_something_else_is_refused() -> None:
    asked = question(ranks=4)
    with pytest.raises(MoecastError, match="the measurement is of another plan"):
        validate(asked.whole, measurement=measurement(asked, plan_hash="0"))
    with pytest.raises(MoecastError, match="of another workload"):
        validate(asked.whole, measurement=measurement(asked, workload={"phase": "decode"}))


def test_errors_skip_rungs_without_the_number() -> None:
    rungs = with_errors(
        [
            RungResult(rung="bound", step_time_s=1.0, exchange_s=1.0),
            RungResult(rung="packet", not_run="no"),
            RungResult(rung="hardware", exchange_s=2.0),
        ]
    )
    assert rungs[0].exchange_error == -0.5
    assert rungs[0].step_error is None
    assert rungs[2].exchange_error is None


def test_a_measurement_survives_its_file(tmp_path: Any) -> None:
    measured = measurement(question(ranks=4))
    write_measurement(measured, tmp_path / "m.json")
    assert read_measurement(tmp_path / "m.json") == measured


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "plan"}, "not a moecast measurement"),
        ({"schema": 7}, "reads measurement schema 1"),
        ({"extra": 1}, "extra: unknown field"),
        ({"steps": 3}, "must be .steps, layers, ranks. = .3, 3, 4."),
        ({"combine_s_WLG": [[[-1.0] * 4] * 3] * 2}, "not negative"),
        ({"combine_s_WLG": None}, "combine_s_WLG: must be an object or list"),
        ({"combine_s_WLG": [[["1"] * 4] * 3] * 2}, "combine_s_WLG = '1': must be a finite number"),
        ({"steps": 0, "dispatch_s_WLG": [], "combine_s_WLG": []}, "steps = 0: at least one"),
        ({"row_bytes": [64]}, "row_bytes = .64.: must be an object or list"),
        ({"dispatch_bytes": 10**400}, "dispatch_bytes = 10+…: must be a finite number"),
    ],
)
def test_a_broken_measurement_is_named(change: dict[str, Any], message: str) -> None:
    value = measurement(question(ranks=4)).to_json() | change
    with pytest.raises(MoecastError, match=message):
        Measurement.from_json(value)


def test_relative_error_of_nothing() -> None:
    assert relative_error(0.0, 0.0) == 0.0
    assert relative_error(1.0, 0.0) == float("inf")
