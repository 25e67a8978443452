"""What Past-Future and BatchLLM claim, in kind: on loads like theirs, beside schedulers that they are compared with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim.serving import Request
from moecast.sim.serving.batchers.batchllm import BatchLlm
from moecast.sim.serving.batchers.mixed import Mixed
from moecast.sim.serving.batchers.past_future import PastFuture, peak_tokens
from moecast.sim.serving.cost.step_cost import LinearCost
from tests.serving.runs import Run, run

LONGEST = 400
COST = LinearCost(fixed_s=0.01, prompt_token_s=2e-5, decode_s=2e-5)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=8))
def test_the_peak_is_what_step_by_step_shows(pairs):
    """Brute force: everybody grows by a token, and who has none left leaves."""
    held, left = [a for a, _ in pairs], [b for _, b in pairs]
    most = 0
    for step in range(max(left) + 1):
        most = max(most, sum(h + step for h, still in zip(held, left, strict=True) if still >= step))
    assert peak_tokens(np.array(held), np.array(left)) == most


def chat(seed: int = 0, count: int = 500, rate_per_s: float = 60.0) -> list[Request]:
    """Answers of very different lengths, up to what users allow, that come faster than a small cache holds them."""
    rng = np.random.default_rng(seed)
    times_s = np.cumsum(rng.exponential(1 / rate_per_s, count))
    outputs = np.clip(rng.lognormal(3.8, 0.9, count), 1, LONGEST).astype(int)
    return [
        Request(
            id=at, arrival_s=float(times_s[at]), prompt_tokens=int(rng.integers(20, 60)), output_tokens=int(outputs[at])
        )
        for at in range(count)
    ]


def kept(requests: list[Request], found: Run, ttft_s: float, tpot_s: float) -> float:
    records = found.records
    outputs = np.array([request.output_tokens for request in requests])
    tpot_Q = (records.end_Q - records.first_Q) / np.maximum(outputs - 1, 1)
    return float(((records.first_Q - records.arrival_Q <= ttft_s) & (tpot_Q <= tpot_s)).mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_past_future_neither_evicts_as_the_aggressive_nor_queues_as_the_conservative(seed):
    requests = chat(seed)
    size = {"kv_blocks": 250, "block_tokens": 16, "cost": COST}
    aggressive = run(requests, policy=Mixed(), **size)
    conservative = run(requests, policy=PastFuture(window=0, assumed_output=LONGEST, reserve=0.0), **size)
    past_future = run(requests, policy=PastFuture(assumed_output=LONGEST), **size)
    assert conservative.times.preemptions == 0
    assert past_future.times.preemptions < aggressive.times.preemptions / 8
    assert past_future.duration_s < conservative.duration_s / 2
    running = [of.times.seconds()["running"] / of.duration_s for of in (conservative, past_future)]
    assert running[1] > 2 * running[0]
    goodput = [kept(requests, of, 5.0, 0.013) for of in (aggressive, conservative, past_future)]
    assert goodput[2] > max(goodput[:2])


def test_what_nobody_has_seen_is_taken_to_be_as_long_as_users_allow():
    requests = [Request(id=at, arrival_s=0.0, prompt_tokens=16, output_tokens=20) for at in range(10)]
    found = run(requests, policy=PastFuture(assumed_output=LONGEST), kv_blocks=60, block_tokens=16)
    assert found.records.first_Q[2] > found.records.end_Q[0]  # two fill the cache, until the first shows how long
    assert (np.diff(np.sort(found.records.first_Q)[3:]) < 0.03).all()


@pytest.mark.parametrize("change", [{"window": -1}, {"assumed_output": 0}, {"reserve": 1.0}])
def test_past_futures_options_have_ranges(change):
    with pytest.raises(MoecastError, match=next(iter(change))):
        PastFuture(**change)


def bulk(groups: int = 24, each: int = 8, prefix: int = 256) -> list[Request]:
    """All at once, groups in turn as a job's rows may stand; the last groups have most to decode."""
    return [
        Request(
            id=row * groups + group,
            arrival_s=0.0,
            prompt_tokens=prefix + 16,
            output_tokens=8 + 4 * group,
            prefix_group=group,
            prefix_tokens=prefix,
        )
        for row in range(each)
        for group in range(groups)
    ]


SMALL = {"kv_blocks": 160, "block_tokens": 16, "max_batched_tokens": 256, "cost": COST}


def test_batchllm_computes_prefixes_once_where_the_cache_is_small():
    requests = bulk()
    first_come = run(requests, policy=Mixed(), prefix_cache=True, **SMALL)
    grouped = run(requests, policy=BatchLlm(), **SMALL)
    apart = 24 * 256 + len(requests) * 16
    assert grouped.times.prompt_tokens - again(grouped, requests) < 1.2 * apart
    assert first_come.times.prompt_tokens > 2 * apart
    assert grouped.duration_s < first_come.duration_s / 1.1


def again(found: Run, requests: list[Request]) -> int:
    """Prompt tokens that were computed after someone lost its blocks, at the most."""
    return int((found.records.preempted_Q * [request.tokens for request in requests]).sum())


def test_batchllms_order_decodes_first_and_ends_earlier():
    requests = [replace(request, output_tokens=8 + 8 * request.prefix_group) for request in bulk()]
    size = {**SMALL, "kv_blocks": 800}
    plain = run(requests, policy=BatchLlm(decode_first=False), **size)
    decode_first = run(requests, policy=BatchLlm(), **size)
    assert decode_first.duration_s < plain.duration_s / 1.1
    alone = [of.times.seconds()["decode_s"] / of.duration_s for of in (plain, decode_first)]
    assert alone[1] < 0.9 * alone[0]  # less of the run is decode without prompts beside


def test_groups_follow_each_other_whole():
    requests = bulk(groups=6, each=4)
    policy = BatchLlm()
    batcher = policy.start(replace(policy.limits(kv_blocks=160), max_batched_tokens=256))
    for request in requests:
        batcher.add(request)
    seen: dict[int, None] = {}
    while batcher.running or batcher.waiting:
        scheduled = batcher.schedule()
        seen |= dict.fromkeys(scheduled.request.tolist())
        batcher.done(scheduled)
    groups = [requests[at].prefix_group for at in seen]
    assert groups == sorted(groups, reverse=True)  # the last group has most to decode
