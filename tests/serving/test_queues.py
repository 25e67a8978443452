"""Waiting in closed form through the same engine: M/D/1, M/M/1 and M/G/1 (Pollaczek–Khinchine); first in, first out."""

from __future__ import annotations

import numpy as np
import pytest

from moecast.sim.serving import Request
from moecast.sim.serving.cost.step_cost import LinearCost
from tests.serving.runs import run

SECONDS_A_TOKEN = 0.01


def served_alone(prompts: np.ndarray, rate_per_s: float, seed: int) -> tuple[np.ndarray, np.ndarray, list[Request]]:
    """Waiting and service of prompts of which one is computed at a time, each in one iteration."""
    rng = np.random.default_rng(seed)
    times_s = np.cumsum(rng.exponential(1 / rate_per_s, len(prompts)))
    requests = [
        Request(id=number, arrival_s=float(times_s[number]), prompt_tokens=int(prompts[number]), output_tokens=1)
        for number in range(len(prompts))
    ]
    found = run(requests, cost=LinearCost(prompt_token_s=SECONDS_A_TOKEN), max_sequences=1, max_batched_tokens=1 << 20)
    service = prompts * SECONDS_A_TOKEN
    return found.records.end_Q - found.records.arrival_Q - service, service, requests


@pytest.mark.parametrize("law", ["M/D/1", "M/M/1", "M/G/1"])
def test_mean_wait_is_that_of_pollaczek_and_khinchine(law):
    rng, count = np.random.default_rng(3), 16_000
    prompts = {
        "M/D/1": np.full(count, 100),
        "M/M/1": np.maximum(1, np.ceil(rng.exponential(100, count))).astype(int),
        "M/G/1": rng.choice([20, 180], count),
    }[law]
    rate = 0.6
    waits, service, _ = served_alone(prompts, rate, seed=5)
    load = rate * service.mean()
    formula = rate * np.mean(service**2) / (2 * (1 - load))
    # The spread of a mean over dependent waits: from 40 batches of 400.
    spread = np.std(waits.reshape(40, -1).mean(axis=1)) / np.sqrt(40)
    assert waits.mean() == pytest.approx(formula, abs=5 * spread)
    assert spread < 0.1 * formula


def test_waits_are_those_of_lindleys_recursion():
    rng = np.random.default_rng(8)
    prompts = rng.integers(1, 200, 3000)
    waits, service, requests = served_alone(prompts, 0.8, seed=9)
    wait, expected = 0.0, []
    for number, request in enumerate(requests):
        if number:
            gap = request.arrival_s - requests[number - 1].arrival_s
            wait = max(0.0, wait + service[number - 1] - gap)
        expected.append(wait)
    np.testing.assert_allclose(waits, expected, atol=1e-6)


def test_who_comes_first_is_first():
    rng = np.random.default_rng(1)
    requests = [
        Request(id=number, arrival_s=number * 1e-3, prompt_tokens=int(rng.integers(1, 300)), output_tokens=1)
        for number in range(300)
    ]
    for policy in ("neutral", "sglang", "trtllm", "vllm"):
        firsts = run(requests, policy=policy, max_batched_tokens=512).records.first_Q
        assert (np.diff(firsts) >= 0).all(), policy
