"""Our vLLM against vLLM: tests/recordings/record_vllm.py says how its decisions were recorded."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from moecast.sim.serving.batchers.vllm import VLLM_0_19, Vllm
from tests.recordings.scheduler_traces import Settings, Trace, read_traces
from tests.serving.replay import limits_of, replay, same

FOLDER = Path(__file__).parents[1] / "recordings"
NAMES = ("vllm-0.33.0", "vllm-0.33.0-async", "vllm-0.19.0", "vllm-0.19.0-async")


@cache
def recorded(name: str) -> tuple[dict[str, Any], list[Trace]]:
    return read_traces(FOLDER / f"{name}.json.gz")


def policy_of(name: str, settings: Settings) -> Vllm:
    return replace(
        VLLM_0_19 if "0.19" in name else Vllm(),
        ahead=name.endswith("async"),
        long_prefill_token_threshold=settings.long_prefill_token_threshold,
        long_prefill_token_threshold_adaptive=settings.long_prefill_token_threshold_adaptive,
        scheduler_reserve_full_isl=settings.reserve_full_isl,
    )


def replayed(policy: Vllm, trace: Trace) -> float:
    steps = replay(policy.start(limits_of(trace.settings)), trace, most=len(trace.steps) + 1)
    return same(steps, trace.steps)


@pytest.mark.parametrize("name", NAMES)
def test_every_step_is_the_one_that_vllm_took(name: str) -> None:
    """Requests, their order and tokens, what the cache held of them, who is preempted or ends, and blocks in use."""
    for trace in recorded(name)[1]:
        policy = policy_of(name, trace.settings)
        steps = replay(policy.start(limits_of(trace.settings)), trace, most=len(trace.steps) + 1)
        assert steps == trace.steps, trace.settings


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("vllm-0.33.0", {"blanks_first": False}),
        ("vllm-0.19.0", {"blanks_first": True}),
        ("vllm-0.33.0", {"cuts_alone": True}),
        ("vllm-0.19.0", {"cuts_alone": False}),
        ("vllm-0.33.0", {"scheduler_reserve_full_isl": True}),
        ("vllm-0.33.0", {"scheduler_reserve_full_isl": False}),
        ("vllm-0.33.0", {"long_prefill_token_threshold": 0}),
        ("vllm-0.33.0", {"long_prefill_token_threshold_adaptive": False}),
        ("vllm-0.33.0", {"ahead": True}),
        ("vllm-0.33.0-async", {"ahead": False}),
    ],
    ids=str,
)
def test_the_recording_tells_every_option_from_another_value(name: str, wrong: dict[str, Any]) -> None:
    for trace in recorded(name)[1]:
        if replayed(replace(policy_of(name, trace.settings), **wrong), trace) < 1:
            return
    pytest.fail("no trace shows a difference")


def test_recordings_are_long_and_varied_and_say_how_they_were_made() -> None:
    sync = [trace for name in NAMES if not name.endswith("async") for trace in recorded(name)[1]]
    assert len(recorded("vllm-0.33.0")[1]) >= 200
    steps = [step for trace in sync for step in trace.steps]
    assert len(steps) > 90_000
    assert sum(len(step.preempted) for step in steps) > 1_000
    assert sum(found > 0 for step in steps for _, found in step.admitted) > 1_000
    assert sum(max(step.tokens) > 1 and min(step.tokens) == 1 for step in steps) > 5_000
    for field in ("chunked", "prefix_caching", "reserve_full_isl", "watermark", "long_prefill_token_threshold"):
        assert len({bool(getattr(trace.settings, field)) for trace in sync}) == 2, field
    for name in NAMES:
        made = recorded(name)[0]
        command = re.fullmatch(
            r"python tests/recordings/record_vllm.py (\S+) --traces (\d+) --seed \d+( --async)?", made["made_by"]
        )
        assert command
        assert command[1] in made["engine"]
        assert int(command[2]) == len(recorded(name)[1])
