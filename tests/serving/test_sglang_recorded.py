"""SGLang's batcher beside what SGLang's own scheduler decided (docs/serving_schedulers.md)."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from moecast.sim.serving.batchers.sglang import Sglang
from tests.recordings.scheduler_traces import Settings, Step, Trace, read_traces
from tests.serving.replay import limits_of, replay, same

RECORDINGS = Path(__file__).parents[1] / "recordings"
NAMES = ("sglang-0.5.9", "sglang-0.5.9-no-overlap")


@lru_cache
def recorded(name: str) -> tuple[dict[str, Any], list[Trace]]:
    return read_traces(RECORDINGS / f"{name}.json.gz")


def policy_of(name: str, settings: Settings) -> Sglang:
    ratio = min(1.0, 0.7 * settings.conservativeness)
    return Sglang(ahead=not name.endswith("no-overlap"), init_ratio=ratio, ignore_eos=settings.ignore_eos)


def in_any_order(step: Step) -> Step:
    """Requests by number: the order within a batch changes nothing."""
    tokens = dict(zip(step.requests, step.tokens, strict=True))
    return replace(
        step,
        requests=sorted(tokens),
        tokens=[tokens[id_] for id_ in sorted(tokens)],
        admitted=sorted(step.admitted),
        preempted=sorted(step.preempted),
        finished=sorted(step.finished),
    )


def identical(policy: Sglang, trace: Trace) -> float:
    found = replay(policy.start(limits_of(trace.settings)), trace, most=len(trace.steps) + 50)
    return same([in_any_order(step) for step in found], [in_any_order(step) for step in trace.steps])


@pytest.mark.parametrize("name", NAMES)
def test_nearly_all_steps_are_the_same(name: str) -> None:
    _, traces = recorded(name)
    parts = [(identical(policy_of(name, trace.settings), trace), len(trace.steps)) for trace in traces]
    part = sum(found * steps for found, steps in parts) / sum(steps for _, steps in parts)
    assert part == 1 if name.endswith("no-overlap") else part > 0.99
    assert sum(found == 1 for found, _ in parts) >= 0.98 * len(traces)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sglang-0.5.9", {"ahead": False}),
        ("sglang-0.5.9", {"init_ratio": 1.0}),
        ("sglang-0.5.9", {"ignore_eos": False}),
        ("sglang-0.5.9", {"mix": True}),
        ("sglang-0.5.9-no-overlap", {"ahead": True}),
    ],
    ids=str,
)
def test_the_recording_tells_every_option_from_another_value(name: str, wrong: dict[str, Any]) -> None:
    for trace in recorded(name)[1]:
        if identical(replace(policy_of(name, trace.settings), **wrong), trace) < 0.98:
            return
    pytest.fail("no trace shows a difference")


def test_recordings_are_long_and_varied_and_say_how_they_were_made() -> None:
    traces = [trace for name in NAMES for trace in recorded(name)[1]]
    assert len(recorded("sglang-0.5.9")[1]) >= 200
    steps = [step for trace in traces for step in trace.steps]
    assert len(steps) > 80_000
    assert sum(len(step.preempted) for step in steps) > 30
    assert sum(max(step.tokens) > 1 and len(step.tokens) > 1 for step in steps) > 500
    assert {trace.settings.ignore_eos for trace in traces} == {True, False}
    assert len({trace.settings.conservativeness for trace in traces}) == 3
    for name in NAMES:
        made = recorded(name)[0]
        command = re.fullmatch(
            r"python tests/recordings/record_sglang.py (\S+) --traces (\d+) --seed \d+( --no-overlap)?", made["made_by"]
        )
        assert command
        assert command[1] in made["engine"]
        assert int(command[2]) == len(recorded(name)[1])
