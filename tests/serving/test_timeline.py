"""A run's timeline against the rules of the trace-event format, and against the times it shows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moecast.sim.serving import PrefillPool, Served, Serving, serve, serving_timeline
from moecast.sim.serving.timeline import REQUESTS
from moecast.sim.timeline import write_timeline
from tests.serving.test_serve import CLOSED, question
from tests.serving.test_serve import REQUESTS as ASKED

Event = dict[str, Any]
STATIONS = ("queue", "prefill", "keys move", "decode")


@pytest.fixture(scope="module")
def one() -> Served:
    return serve(question(ep=4, groups=2), ASKED, arrivals=CLOSED, log_spans=100_000)


@pytest.fixture(scope="module")
def apart() -> Served:
    plan = question(ep=4).plan.with_(gpu_of_rank=(4, 5, 6, 7))
    return serve(question(ep=4), ASKED, arrivals=CLOSED, prefill=PrefillPool(plan=plan), log_spans=100_000)


def check_format(events: list[Event]) -> None:
    """What Chrome's and Perfetto's importers ask of JSON events."""
    for event in events:
        assert event["ph"] in ("X", "C", "M")
        assert type(event["pid"]) is type(event["tid"]) is int
        assert isinstance(event["name"], str)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert list(event["args"]) == ["name"]
            continue
        assert type(event["ts"]) is float
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert type(event["dur"]) is float
            assert event["dur"] > 0
        else:
            assert all(value >= 0 for value in event["args"].values())


def tracks(events: list[Event]) -> dict[tuple[int, int], list[Event]]:
    found = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            found[event["pid"], event["tid"]].append(event)
    return found


def check_nested(spans: list[Event]) -> None:
    """Spans of a track contain each other or are apart, as importers want them."""
    open_until: list[float] = []
    for span in spans:
        begin, end = span["ts"], span["ts"] + span["dur"]
        while open_until and open_until[-1] <= begin + 1e-3:
            open_until.pop()
        assert not open_until or end <= open_until[-1] + 1e-3
        open_until.append(end)


@pytest.mark.parametrize("name", ["one", "apart"])
def test_every_request_is_a_span_tiled_by_its_stations(name: str, request: pytest.FixtureRequest) -> None:
    served: Served = request.getfixturevalue(name)
    events = serving_timeline(served)["traceEvents"]
    check_format(events)
    seen: dict[str, Event] = {}
    inside: dict[str, float] = defaultdict(float)
    seats = [spans for (process, _), spans in tracks(events).items() if process == REQUESTS]
    assert len(seats) <= 12  # of the closed loop
    for spans in seats:
        check_nested(spans)
        current = ""
        for span in spans:
            if span["name"] in STATIONS:
                inside[current] += span["dur"]
            else:
                current = span["name"]
                seen[current] = span
    times = served.times
    assert set(seen) == {f"request {number}" for number in range(len(ASKED))}
    for number in range(len(ASKED)):
        span = seen[f"request {number}"]
        assert span["ts"] == pytest.approx(times.arrival_Q[number] * 1e6)
        assert span["dur"] == pytest.approx((times.end_Q - times.arrival_Q)[number] * 1e6)
        assert inside[f"request {number}"] == pytest.approx(span["dur"])
    for earlier, later in zip(
        (times.arrival_Q, times.started_Q, times.prefilled_Q, times.first_Q),
        (times.started_Q, times.prefilled_Q, times.first_Q, times.end_Q),
        strict=True,
    ):
        assert (earlier <= later).all()
    moved = (times.first_Q > times.prefilled_Q).any()
    assert moved == (name == "apart")


@pytest.mark.parametrize("name", ["one", "apart"])
def test_every_iteration_of_every_rank_is_a_span(name: str, request: pytest.FixtureRequest) -> None:
    served: Served = request.getfixturevalue(name)
    timeline = serving_timeline(served)
    assert timeline["otherData"]["iterations_left_out"] == 0
    of_ranks = {place: spans for place, spans in tracks(timeline["traceEvents"]).items() if place[0] != REQUESTS}
    assert len(of_ranks) == 8
    for spans in of_ranks.values():
        check_nested(spans)
    assert sum(len(spans) for spans in of_ranks.values()) == served.iterations * 4
    prompts = sum(span["args"]["prompt tokens"] for spans in of_ranks.values() for span in spans)
    decodes = sum(span["args"]["decode tokens"] for spans in of_ranks.values() for span in spans)
    assert prompts == served.input_tokens
    assert decodes >= served.output_tokens - len(ASKED)


def test_what_has_no_room_is_counted(one: Served) -> None:
    served = serve(question(ep=4, groups=2), ASKED, arrivals=CLOSED, log_spans=40)
    about = serving_timeline(served)["otherData"]
    kept = sum(len(logged.ends_W) for log in served.logs.values() for logged in log.kept)
    assert 0 < kept <= 10
    assert about["iterations_left_out"] == served.iterations - kept
    assert served.to_json() == one.to_json()


def test_counters_tell_the_state_over_time(one: Served) -> None:
    counters = [event for event in serving_timeline(one)["traceEvents"] if event["ph"] == "C"]
    running = [(event["ts"], event["args"]["running"]) for event in counters if event["name"] == "requests"]
    at_us, value = (np.array(column) for column in zip(*running, strict=True))
    assert value[-1] == 0
    seconds = float((np.diff(at_us) * value[:-1]).sum() / 1e6)
    waiting = sum(one.over_time["engine"].waiting) * one.over_time["engine"].bin_s
    assert seconds + waiting == pytest.approx(float((one.times.end_Q - one.times.arrival_Q).sum()), rel=1e-6)


def test_preempted_requests_say_so(tmp_path) -> None:
    tight = Serving(batcher="neutral", kv_blocks=14, block_tokens=16)
    requests = [replace(of, output_tokens=60) for of in ASKED]
    served = serve(question(ep=4, groups=2), requests, arrivals=CLOSED, serving=tight)
    assert served.times.preempted_Q.sum() == served.kv["preemptions"] > 0
    drawn = [e["args"]["preempted"] for e in serving_timeline(served)["traceEvents"] if e.get("cat") == "request"]
    assert sum(drawn) == served.kv["preemptions"]
    write_timeline(serving_timeline(served), tmp_path / "t.json")
    assert (tmp_path / "t.json").stat().st_size > 1000
