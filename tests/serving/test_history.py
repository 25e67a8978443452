"""State over time: sums that stay exact while bins are merged, and what they say of a run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.sim.serving.history import FIRST_S, VALUES, History
from moecast.sim.serving.step_times import StepsByBatch
from tests.serving.runs import drawn, run
from tests.serving.test_conserved import POLICIES, STEP, EveryStep

spans = st.lists(st.tuples(st.floats(0, 50), st.floats(0.01, 20), st.floats(0.1, 9)), min_size=1, max_size=30)


@given(spans=spans)
@settings(max_examples=60, deadline=None)
def test_bins_hold_what_came_up_in_their_time(spans):
    history = History(bins=16)
    for start_s, took_s, amount in spans:
        history.add(start_s, start_s + took_s, [amount] * len(VALUES))
    ends_s = history.bin_s * np.arange(1, 17)
    wanted_B = np.zeros(16)
    for start_s, took_s, amount in spans:
        covered_B = np.clip(ends_s, start_s, start_s + took_s) - np.clip(
            ends_s - history.bin_s, start_s, start_s + took_s
        )
        wanted_B += amount * covered_B / took_s
    last_s = max(start_s + took_s for start_s, took_s, _ in spans)
    found = history.over_time(last_s, 1)
    np.testing.assert_allclose(found.iterations, wanted_B[: len(found.iterations)], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(history.total_V, sum(amount for *_, amount in spans), rtol=1e-9)
    assert history.bin_s == FIRST_S or last_s > 8 * history.bin_s  # never coarser than it must be


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@given(seed=st.integers(0, 1 << 20), blocks=st.integers(40, 400), users=st.none() | st.integers(1, 12))
@settings(max_examples=4, deadline=None)
def test_whoever_is_there_runs_or_waits(policy, seed, blocks, users):
    """Little's law of the picture: what runs and waits over time is every request's stay."""
    found = run(
        drawn(seed, 30), policy=policy, kv_blocks=blocks, ranks=2, concurrency=users, block_tokens=4, max_sequences=8
    )
    seconds = found.times.seconds()
    assert seconds["running"] + seconds["waiting"] == pytest.approx(found.records.in_system_s, rel=1e-9)
    assert seconds["output_tokens"] == pytest.approx(found.times.output_tokens)
    assert seconds["prompt_tokens"] == pytest.approx(found.times.prompt_tokens)
    assert seconds["prompt_s"] + seconds["decode_s"] <= found.duration_s * (1 + 1e-9)
    assert seconds["iterations"] == pytest.approx(found.times.iterations)
    over = found.times.history.over_time(found.duration_s, 1)
    assert max(over.kv_used) <= 1 + 1e-9
    assert max(over.running) <= 2 * 9  # those that leave keep their place for one more iteration


@pytest.mark.parametrize("policy", ["neutral", "vllm", "sglang"])
def test_many_iterations_at_once_leave_the_same_history(policy):
    requests = drawn(4, 60, rate_per_s=5.0)
    values = {name: getattr(STEP, name) for name in ("fixed_s", "prompt_token_s", "decode_s", "decode_key_s")}
    size = {"block_tokens": 4, "max_sequences": 8, "ranks": 2, "kv_blocks": 300}
    jumps, steps = (run(requests, policy=policy, cost=cost, **size) for cost in (STEP, EveryStep(**values)))
    left, right = jumps.times.seconds(), steps.times.seconds()
    for name in set(VALUES) - {"kv_used"}:
        assert left[name] == pytest.approx(right[name], rel=1e-9, abs=1e-9), name
    assert left["kv_used"] == pytest.approx(right["kv_used"], rel=0.02)  # blocks opened in between count evenly
    for one, other in zip(jumps.times.steps.found(), steps.times.steps.found(), strict=True):
        assert (one.kind, one.iterations) == (other.kind, other.iterations)
        np.testing.assert_allclose([one.mean_s, one.least_s, one.most_s], [other.mean_s, other.least_s, other.most_s])


def test_steps_are_told_apart_by_batch_and_prompts():
    steps = StepsByBatch()
    steps.add(prompts=False, batch=8, durations_W=np.array([1.0, 3.0]), took_s=4.0)
    steps.add(prompts=False, batch=8, durations_W=np.array([5.0]), took_s=5.0)
    steps.add(prompts=True, batch=0, durations_W=np.array([2.0]), took_s=2.0)
    decode, prompts = steps.found()
    assert (decode.kind, decode.batch, decode.iterations) == ("decode", 8.0, 3)
    assert (decode.mean_s, decode.least_s, decode.most_s) == (3.0, 1.0, 5.0)
    assert (prompts.kind, prompts.iterations) == ("with prompts", 1)
