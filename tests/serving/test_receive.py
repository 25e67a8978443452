"""An engine that looks only every so many iterations who has come."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim.serving import Request, Serving
from moecast.sim.serving.batchers import find_batcher
from moecast.sim.serving.cost.step_cost import LinearCost
from tests.serving.runs import STEP, drawn, run

SECOND = LinearCost(fixed_s=1.0)


@dataclass(frozen=True, kw_only=True)
class OneByOne(LinearCost):
    """The same cost, of every iteration by itself."""

    @property
    def by_request(self) -> bool:
        return True


@pytest.mark.parametrize("policy", ["neutral", "sglang"])
@given(every=st.integers(1, 12), at=st.integers(2, 300).map(lambda tenths: tenths / 10 + 0.05))
@settings(max_examples=40, deadline=None)
def test_who_comes_is_seen_at_the_next_look(policy: str, every: int, at: float) -> None:
    # Iterations take a second. The first one is a prompt's, so that looks are at 1, 1 + every, 1 + 2 every, …
    requests = [
        Request(id=0, arrival_s=0.0, prompt_tokens=1, output_tokens=80),
        Request(id=1, arrival_s=at, prompt_tokens=1, output_tokens=1),
    ]
    known_s = at + 1 if find_batcher(policy).ahead else at
    look_s = 1 + every * math.ceil((known_s - 1) / every)
    found = run(requests, policy=policy, cost=SECOND, receive_every=every)
    assert found.records.first_Q[1] == pytest.approx(look_s + 1)


@pytest.mark.parametrize("policy", ["neutral", "vllm", "sglang", "trtllm"])
@given(seed=st.integers(0, 10**6), every=st.sampled_from((1, 2, 7, 30)))
@settings(max_examples=15, deadline=None)
def test_many_iterations_at_once_are_the_same_as_one_by_one(policy: str, seed: int, every: int) -> None:
    requests = drawn(seed, 40)
    alone = OneByOne(**{name: getattr(STEP, name) for name in STEP.__dataclass_fields__})
    at_once, by_one = (run(requests, policy=policy, cost=cost, receive_every=every) for cost in (STEP, alone))
    np.testing.assert_allclose(at_once.records.first_Q, by_one.records.first_Q, rtol=1e-9)
    np.testing.assert_allclose(at_once.records.end_Q, by_one.records.end_Q, rtol=1e-9)


def test_fewer_looks_make_fewer_iterations_with_prompts_and_longer_waits() -> None:
    requests = [replace(request, output_tokens=request.output_tokens + 40) for request in drawn(3, 200)]
    often, seldom = (run(requests, policy="sglang", concurrency=16, receive_every=every) for every in (1, 20))
    assert seldom.times.seconds()["prompt_s"] < 0.5 * often.times.seconds()["prompt_s"]
    waits = [(found.records.first_Q - found.records.arrival_Q).mean() for found in (often, seldom)]
    assert waits[1] > 3 * waits[0]


def test_it_looks_at_least_now_and_then() -> None:
    with pytest.raises(MoecastError, match="receive_every = 0: at least 1"):
        Serving(receive_every=0)
