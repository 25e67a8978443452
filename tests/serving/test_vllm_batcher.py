"""Properties of vLLM's batching over generated requests and limits."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim.serving.batchers import BATCHERS, Batcher, Limits
from moecast.sim.serving.batchers.vllm import VLLM_0_19, Vllm
from moecast.sim.serving.batchers.vllm_scheduler import VllmBatcher
from moecast.sim.serving.request import Request
from tests.recordings.scheduler_traces import Step

Case = tuple[Vllm, Limits, list[tuple[int, Request]]]
NEVER_HANGS = 20_000


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A policy, limits that any of the requests fits, and requests with the step at which each comes."""
    size = draw(st.sampled_from((1, 4, 16)))
    requests = []
    step = 0
    for index in range(draw(st.integers(1, 12))):
        step += draw(st.sampled_from((0, 0, 1, 7)))
        prompt = draw(st.integers(1, 60))
        group = draw(st.sampled_from((-1, 0, 1)))
        prefix = draw(st.integers(0, prompt)) if group >= 0 else 0
        request = Request(
            id=index,
            arrival_s=0.0,
            prompt_tokens=prompt,
            output_tokens=draw(st.integers(1, 40)),
            prefix_group=group,
            prefix_tokens=prefix,
        )
        requests.append((step, request))
    longest = max(request.tokens for _, request in requests)
    chunked = draw(st.booleans())
    limits = Limits(
        max_batched_tokens=draw(st.integers(1, 64)) if chunked else longest + draw(st.integers(0, 64)),
        max_sequences=draw(st.integers(1, 8)),
        kv_blocks=-(-longest // size) + draw(st.sampled_from((0, 1, 3, 10, 100))),
        block_tokens=size,
        watermark=draw(st.sampled_from((0.0, 0.1, 0.9))),
        chunked=chunked,
        prefix_cache=draw(st.booleans()),
    )
    policy = Vllm(
        ahead=draw(st.booleans()),
        long_prefill_token_threshold=draw(st.sampled_from((0, 5))) if chunked else 0,
        long_prefill_token_threshold_adaptive=draw(st.booleans()),
        scheduler_reserve_full_isl=draw(st.booleans()),
        blanks_first=draw(st.booleans()),
    )
    return policy, limits, requests


def run(batcher: Batcher, requests: list[tuple[int, Request]], *, leaps: bool) -> list[Step]:
    """Every step; with `leaps` those that are quiet are taken at once, as the event loop does it."""
    steps: list[Step] = []
    coming = list(requests)
    while coming or batcher.running or batcher.waiting:
        assert len(steps) < NEVER_HANGS
        if not batcher.running and not batcher.waiting and coming[0][0] > len(steps):
            coming = [(max(at - coming[0][0], 0) + len(steps), request) for at, request in coming]
        while coming and coming[0][0] <= len(steps):
            batcher.add(coming.pop(0)[1])
        quiet = batcher.quiet_steps() if leaps else 0
        if coming:
            quiet = min(quiet, coming[0][0] - len(steps))
        if quiet:
            running = steps[-1]
            ids = [request for request in running.requests if request not in running.finished]
            batcher.advance(quiet)
            steps += [
                Step(requests=ids, tokens=[1] * len(ids), admitted=[], preempted=[], finished=[], blocks_used=0)
            ] * quiet
            continue
        scheduled = batcher.schedule()
        used = batcher.kv_blocks_used
        ended = batcher.done(scheduled)
        if len(scheduled):
            rows = [scheduled.request.tolist(), scheduled.tokens.tolist(), scheduled.context.tolist()]
            admitted = [(a, c) for a, c in zip(rows[0], rows[2], strict=True)]
            steps.append(
                Step(
                    requests=rows[0],
                    tokens=rows[1],
                    admitted=admitted,
                    preempted=list(scheduled.preempted),
                    finished=list(ended),
                    blocks_used=used,
                )
            )
    return steps


@given(case=cases())
def test_tokens_are_conserved_and_the_cache_is_never_overfull(case: Case) -> None:
    policy, limits, requests = case
    batcher = policy.start(limits)
    steps = run(batcher, requests, leaps=False)
    assert Counter(request for step in steps for request in step.finished) == Counter(r.id for _, r in requests)
    known = {request.id: request.prompt_tokens for _, request in requests}
    held: dict[int, int] = {}
    for step in steps:
        for request in step.preempted:
            held.pop(request, None)
        assert sum(step.tokens) <= limits.max_batched_tokens
        assert len(step.requests) == len(set(step.requests)) <= limits.max_sequences
        assert step.blocks_used <= limits.kv_blocks
        for request, count, (_, context) in zip(step.requests, step.tokens, step.admitted, strict=True):
            # what is computed follows what is there; what is there at first is whole blocks from the cache
            assert context == held.get(request, context)
            assert request in held or (context % limits.block_tokens == 0 and (limits.prefix_cache or not context))
            held[request] = context + count
            assert held[request] <= known[request]
            known[request] += held[request] == known[request]
    tokens = {request.id: request.tokens for _, request in requests}
    assert known == tokens
    assert batcher.kv_blocks_used == 0
    if not limits.prefix_cache and not any(step.preempted for step in steps):
        assert sum(sum(step.tokens) for step in steps) == sum(tokens.values()) - len(tokens)


@given(case=cases())
def test_first_come_is_first_admitted(case: Case) -> None:
    policy, limits, requests = case
    seen = dict.fromkeys(
        request for step in run(policy.start(limits), requests, leaps=False) for request in step.requests
    )
    assert list(seen) == [request.id for _, request in requests]


@given(case=cases())
def test_quiet_steps_at_once_are_the_same_as_one_by_one(case: Case) -> None:
    policy, limits, requests = case
    leaping, walking = (run(policy.start(limits), requests, leaps=leaps) for leaps in (True, False))
    assert [(s.requests, s.tokens, s.finished, s.preempted) for s in leaping] == [
        (s.requests, s.tokens, s.finished, s.preempted) for s in walking
    ]


def test_long_decode_is_quiet_to_its_last_token() -> None:
    batcher = Vllm().start(Limits(max_batched_tokens=64, max_sequences=4, kv_blocks=100, block_tokens=16))
    batcher.add(Request(id=0, arrival_s=0.0, prompt_tokens=16, output_tokens=500))
    batcher.done(batcher.schedule())
    assert batcher.quiet_steps() == 498
    batcher.advance(498)
    assert batcher.quiet_steps() == 0
    assert batcher.kv_blocks_used == 33
    assert batcher.done(batcher.schedule()) == (0,)


def test_a_prompt_computed_elsewhere_decodes_at_once() -> None:
    batcher = VllmBatcher(Limits(max_batched_tokens=64, max_sequences=4, kv_blocks=100, block_tokens=16), Vllm())
    batcher.add_prefilled(Request(id=3, arrival_s=0.0, prompt_tokens=40, output_tokens=3))
    scheduled = batcher.schedule()
    assert (scheduled.request.tolist(), scheduled.tokens.tolist(), scheduled.context.tolist()) == ([3], [1], [40])
    assert batcher.done(scheduled) == ()
    assert batcher.done(batcher.schedule()) == (3,)


def test_bad_input_says_what_and_why() -> None:
    small = Limits(max_batched_tokens=8, max_sequences=4, kv_blocks=4, block_tokens=16, chunked=False)
    request = Request(id=0, arrival_s=0.0, prompt_tokens=10, output_tokens=3)
    with pytest.raises(MoecastError, match=r"max_batched_tokens.*without chunks.*request 0 whole, up to 12 tokens"):
        Vllm().start(small).add(request)
    large = Request(id=1, arrival_s=0.0, prompt_tokens=60, output_tokens=30)
    with pytest.raises(MoecastError, match="holds 64 tokens, request 1 alone needs 89"):
        Vllm().start(small).add(large)
    with pytest.raises(MoecastError, match="long_prefill_token_threshold"):
        Vllm(long_prefill_token_threshold=-1)


def test_both_versions_are_listed() -> None:
    assert {Vllm(), VLLM_0_19} <= set(BATCHERS)
    assert Vllm().limits(kv_blocks=10).block_tokens == 16
