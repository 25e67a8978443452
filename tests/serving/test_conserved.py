"""What holds in every run, whatever the batcher: tokens, blocks, order of times, Little's law, same seed same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.sim.serving import Request
from moecast.sim.serving.batchers import BATCHERS, Scheduled
from moecast.sim.serving.batchers.mixed import Mixed
from moecast.sim.serving.batchers.trtllm import Trtllm
from moecast.sim.serving.cost.step_cost import LinearCost
from moecast.sim.serving.cost.step_load import StepLoad
from tests.serving.runs import STEP, Run, drawn, run

POLICIES = (*BATCHERS, Mixed(name="swaps", swaps=True), Trtllm(name="full", capacity="max_utilization"))


class EveryStep(LinearCost):
    """Costs the same, and asks for every iteration, so that none is skipped."""

    @property
    def by_request(self) -> bool:
        return True


def check(requests: list[Request], found: Run) -> None:
    records, times = found.records, found.times
    outputs = np.array([request.output_tokens for request in requests])
    assert times.output_tokens == outputs.sum()
    assert times.prompt_tokens + times.decode_tokens >= sum(request.prompt_tokens for request in requests)
    assert found.times.kv_peak <= found.limits.kv_blocks
    assert (records.first_Q > records.arrival_Q).all()
    assert (records.end_Q >= records.first_Q).all()
    assert (records.end_Q[outputs == 1] == records.first_Q[outputs == 1]).all()
    in_system = records.in_system_s / found.duration_s
    rate, stay = len(requests) / found.duration_s, np.mean(records.end_Q - records.arrival_Q)
    assert in_system == pytest.approx(rate * stay, rel=1e-9)
    assert records.in_system == 0


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@given(
    seed=st.integers(0, 1 << 20),
    count=st.integers(1, 40),
    blocks=st.integers(30, 200),
    ranks=st.integers(1, 3),
    users=st.none() | st.integers(1, 12),
    budget=st.integers(8, 200),
)
@settings(max_examples=6, deadline=None)
def test_nothing_is_lost(policy, seed, count, blocks, ranks, users, budget):
    requests = drawn(seed, count)
    size = {"block_tokens": 4, "max_batched_tokens": budget, "max_sequences": 16}
    found = run(requests, policy=policy, kv_blocks=blocks, ranks=ranks, concurrency=users, **size)
    check(requests, found)
    again = run(requests, policy=policy, kv_blocks=blocks, ranks=ranks, concurrency=users, **size)
    assert found.records.end_Q.tobytes() == again.records.end_Q.tobytes()
    assert found.records.first_Q.tobytes() == again.records.first_Q.tobytes()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@given(seed=st.integers(0, 1 << 20), blocks=st.integers(40, 400), users=st.none() | st.integers(1, 12))
@settings(max_examples=4, deadline=None)
def test_many_iterations_at_once_are_the_same_as_one_by_one(policy, seed, blocks, users):
    requests = drawn(seed, 25, rate_per_s=5.0)
    values = {name: getattr(STEP, name) for name in ("fixed_s", "prompt_token_s", "decode_s", "decode_key_s")}
    size = {"block_tokens": 4, "max_sequences": 8, "ranks": 2, "concurrency": users, "kv_blocks": blocks}
    jumps = run(requests, policy=policy, **size)
    steps = run(requests, policy=policy, cost=EveryStep(**values), **size)
    np.testing.assert_allclose(jumps.records.end_Q, steps.records.end_Q, rtol=1e-9)
    np.testing.assert_allclose(jumps.records.first_Q, steps.records.first_Q, rtol=1e-9)
    assert jumps.times.iterations == steps.times.iterations
    assert jumps.records.gaps.count == steps.records.gaps.count
    assert jumps.records.gaps.mean_s == pytest.approx(steps.records.gaps.mean_s, rel=1e-9)
    assert jumps.times.output_tokens == steps.times.output_tokens


def test_ranks_that_step_together_are_as_slow_as_the_busiest():
    cost = LinearCost(fixed_s=1.0, decode_s=0.5)
    load = StepLoad(
        **{name: np.array([0, 0]) for name in ("prompt_tokens_G", "prompt_keys_G", "prompts_G")},
        decodes_G=np.array([1, 6]),
        decode_keys_G=np.array([10, 60]),
    )
    assert cost.seconds(load) == 4.0
    np.testing.assert_allclose(cost.ahead(load, 3), 4.0)


def test_prefix_cache_spares_what_requests_have_in_common():
    requests = [
        Request(
            id=number, arrival_s=float(number), prompt_tokens=100, output_tokens=2, prefix_group=0, prefix_tokens=80
        )
        for number in range(10)
    ]
    for policy in ("neutral", "sglang", "trtllm", "vllm"):
        with_it, without = (run(requests, policy=policy, block_tokens=16, prefix_cache=kept) for kept in (True, False))
        assert without.times.prompt_tokens == 1000
        assert with_it.times.prompt_tokens == 1000 - 9 * 80, policy


def test_preempted_requests_compute_again_or_swap():
    requests = [Request(id=number, arrival_s=0.0, prompt_tokens=40, output_tokens=60) for number in range(8)]
    again = run(requests, policy=Mixed(), kv_blocks=60, block_tokens=4)
    swapped = run(requests, policy=Mixed(swaps=True), kv_blocks=60, block_tokens=4)
    assert again.times.preemptions
    assert swapped.times.preemptions
    assert again.times.prompt_tokens > 8 * 40
    assert swapped.times.prompt_tokens == 8 * 40
    assert swapped.times.swapped_blocks
    kept = run(requests, policy=Trtllm(), kv_blocks=60, block_tokens=4)
    assert not kept.times.preemptions


def test_static_batches_wait_for_their_longest():
    requests = [
        Request(id=number, arrival_s=0.0, prompt_tokens=10, output_tokens=2 + 50 * (number % 2)) for number in range(8)
    ]
    static = run(requests, policy="static", max_sequences=4)
    mixed = run(requests, policy="neutral", max_sequences=4)
    assert static.duration_s > mixed.duration_s
    # The first to come is a batch of its own: it finds an idle engine.
    assert static.records.first_Q[5:].min() > static.records.end_Q[1:5].max()


def test_an_empty_iteration_says_nothing():
    assert len(Scheduled()) == 0
    assert not Scheduled().decodes.any()
