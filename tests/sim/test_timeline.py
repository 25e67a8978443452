"""The timeline against the rules of the trace-event format, and against the times it shows."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from moecast.sim import (
    RUNGS,
    Compute,
    StepProgram,
    StepTimes,
    program_timeline,
    simulate_step,
    step_timeline,
    write_timeline,
)
from moecast.sim.breakdown import breakdown
from moecast.sim.network import Rung
from moecast.sim.program import BREAKDOWN_PARTS
from moecast.sim.timeline import PATH_PROCESS, PROCESS
from tests.sim.plan_cases import Question, questions
from tests.strategies_program import programs

COUNTER, SPAN, METADATA = "C", "X", "M"


def check_format(events: list[dict[str, object]]) -> None:
    """What Chrome's and Perfetto's importers ask of JSON events."""
    for event in events:
        assert event["ph"] in (COUNTER, SPAN, METADATA)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
        if event["ph"] == METADATA:
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            [key] = event["args"]
            assert key == ("sort_index" if event["name"] == "thread_sort_index" else "name")
            continue
        assert isinstance(event["ts"], float)
        assert event["ts"] >= 0
        if event["ph"] == SPAN:
            assert event["dur"] > 0
            assert event["cat"] in ("compute", "exchange", "idle")
        else:
            assert event["args"]
            assert all(value >= 0 for value in event["args"].values())


def of_ranks(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is drawn of ranks: all but the critical path."""
    return [event for event in events if event["pid"] == PROCESS]


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@settings(max_examples=40, deadline=None)
@given(program=programs(most_ranks=8, most_stages=8))
def test_the_critical_path_is_drawn_from_end_to_end(rung: Rung, program: StepProgram) -> None:
    times = rung.run(program)
    events = program_timeline(program, times)["traceEvents"]
    drawn = [event for event in events if event["pid"] == PATH_PROCESS and event["ph"] == SPAN]
    clock = 0.0
    for event in drawn:
        assert event["ts"] == pytest.approx(clock, rel=1e-9, abs=1e-6)
        assert event["args"]["on"] in {"no rank that is known", *(f"rank {rank}" for rank in range(program.n_ranks))}
        clock = event["ts"] + event["dur"]
    assert clock == pytest.approx(times.step_time_s * 1e6, rel=1e-9, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(questions(modes=(None, "per_choice", "per_domain", "nccl", "stay")))
@pytest.mark.parametrize("network", ["bound", "fluid"])
def test_timeline_is_valid_and_tells_the_times(network: str, question: Question) -> None:
    args = question.cluster, question.model, question.plan, question.trace, question.step
    timeline = step_timeline(*args, network=network)
    program, times = simulate_step(*args, network=network)
    events = json.loads(json.dumps(timeline, allow_nan=False))["traceEvents"]
    check_format(events)
    events = of_ranks(events)
    spans, idle = defaultdict(list), defaultdict(list)
    for event in events:
        if event["ph"] == SPAN:
            assert event["pid"] == PROCESS
            (idle if event["name"] == "idle" else spans)[event["tid"]].append(event)
    assert spans or not times.step_time_s
    for rank in range(program.n_ranks):
        end = times.leave_SG[-1, rank] * 1e6
        outer = [event for event in spans[rank] if "waits for" not in event["args"]]
        after = [event for event in (*spans[rank], *idle[rank]) if "waits for" in event["args"]]
        clock = 0.0
        for event in sorted(outer, key=lambda event: event["ts"]):
            assert event["ts"] == pytest.approx(clock, abs=1e-6)  # a rank is always in exactly one stage
            clock = event["ts"] + event["dur"]
        assert clock == pytest.approx(end, abs=1e-6)
        for event in sorted(after, key=lambda event: event["ts"]):  # and then waits until the step is over
            assert event["ts"] == pytest.approx(clock, abs=1e-6)
            clock = event["ts"] + event["dur"]
        assert clock == pytest.approx(times.step_time_s * 1e6, abs=1e-6)
        for event in idle[rank]:
            if event not in after:  # inside the exchange in which it waits
                [stage] = [s for s in outer if s["ts"] == event["ts"] and s["cat"] == "exchange"]
                assert event["dur"] <= stage["dur"] * (1 + 1e-9)
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert len(names) == program.n_ranks
    for rank, name in names.items():
        assert name == f"rank {rank} ({question.cluster.gpus[question.plan.gpu_of_rank[rank]].name})"


@settings(max_examples=20, deadline=None)
@given(questions())
def test_counters_end_where_they_begin(question: Question) -> None:
    """All ranks are somewhere until the last is done; then counters are back at zero."""
    args = question.cluster, question.model, question.plan, question.trace, question.step
    events = step_timeline(*args)["traceEvents"]
    last: dict[str, dict[str, float]] = {}
    for event in events:
        if event["ph"] == COUNTER:
            last[event["name"]] = event["args"]
    assert last["ranks"] == {"compute": 0, "exchange": 0, "idle": 0}
    for name, values in last.items():
        if name != "ranks":
            assert values["%"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@settings(max_examples=60, deadline=None)
@given(program=programs(most_ranks=8, most_stages=8))
def test_the_slices_add_up_to_the_breakdown(rung: Rung, program: StepProgram) -> None:
    """What a reader of the timeline adds up by name, idle taken from the exchange around it, is the breakdown."""
    times = rung.run(program)
    parts = dict.fromkeys(BREAKDOWN_PARTS, 0.0)
    for event in of_ranks(program_timeline(program, times)["traceEvents"]):
        if event["ph"] == SPAN:
            seconds = event["dur"] * 1e-6 / program.n_ranks
            parts[event["name"]] += seconds
            if event["name"] == "idle" and not event["args"]:
                parts[_around(program, times, event)] -= seconds
    expected = breakdown(program, times).step
    for part in BREAKDOWN_PARTS:
        assert parts[part] == pytest.approx(expected[part], rel=1e-9, abs=1e-9 * times.step_time_s)


def _around(program: StepProgram, times: StepTimes, idle: dict[str, Any]) -> str:
    """The kind of the exchange at whose beginning a rank is idle."""
    for stage, enter in zip(program.tasks, times.enter_SG[:, idle["tid"]], strict=True):
        if not isinstance(stage, Compute) and enter * 1e6 == idle["ts"]:
            return stage.kind
    raise AssertionError("idle outside an exchange")


@settings(max_examples=20, deadline=None)
@given(questions())
def test_spans_carry_every_byte(question: Question) -> None:
    args = question.cluster, question.model, question.plan, question.trace, question.step
    program, times = simulate_step(*args)
    events = program_timeline(program, times)["traceEvents"]
    sent = sum(event["args"].get("bytes sent", 0) for event in events if event["ph"] == SPAN)
    expected = 0.0
    for stage in program.tasks:
        if not isinstance(stage, Compute):
            away = stage.fill().source_rank_F != stage.fill().destination_rank_F
            expected += stage.fill().bytes_F[away].sum()
    assert sent == pytest.approx(expected)
    assert not [event for event in events if event["ph"] == COUNTER and event["name"] != "ranks"]


@settings(max_examples=1, deadline=None)
@given(questions())
def test_written_whole(tmp_path_factory: pytest.TempPathFactory, question: Question) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "timeline.json"
    args = question.cluster, question.model, question.plan, question.trace, question.step
    timeline = step_timeline(*args)
    write_timeline(timeline, path)
    read = json.loads(path.read_text())
    assert read["otherData"]["network"] == "fluid"
    assert read["displayTimeUnit"] == "ms"
    assert len(read["traceEvents"]) == len(timeline["traceEvents"])
    assert np.isfinite(read["otherData"]["step_time_s"])


def test_a_timeline_walks_its_tasks_for_their_streams_once_and_not_for_each_span(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walks, streams = [], StepProgram.streams
    monkeypatch.setattr(StepProgram, "streams", property(lambda of: walks.append(of) or streams.fget(of)))
    n_ranks, n_tasks = 3, 200
    tasks = tuple(
        Compute(seconds_R=np.ones(n_ranks), kind="other", layer=-1, stream="compute" if task % 2 else "copy")
        for task in range(n_tasks)
    )
    program = StepProgram(tasks=tasks, n_ranks=n_ranks, capacity_J=np.ones(1), link_names_J=("link",))
    events = of_ranks(program_timeline(program, RUNGS[0].run(program))["traceEvents"])
    assert sum(event["ph"] == SPAN for event in events) == n_ranks * n_tasks
    assert len(walks) < 5
