"""Runs of requests through one engine whose iterations cost what a test says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moecast.sim.serving import Request
from moecast.sim.serving.arrivals import ClosedSource, OpenSource, Source
from moecast.sim.serving.batchers import Limits, Policy, find_batcher
from moecast.sim.serving.cost.step_cost import LinearCost, StepCost
from moecast.sim.serving.dispatch import Dispatcher
from moecast.sim.serving.instance import Instance
from moecast.sim.serving.loop import EventLoop, Pool
from moecast.sim.serving.records import PoolTimes, Records

STEP = LinearCost(fixed_s=0.01, prompt_token_s=1e-5, decode_s=1e-5, decode_key_s=1e-9)


@dataclass(frozen=True, kw_only=True)
class Run:
    records: Records
    times: PoolTimes
    limits: Limits
    duration_s: float


def run(
    requests: Sequence[Request],
    *,
    policy: str | Policy = "neutral",
    cost: StepCost = STEP,
    concurrency: int | None = None,
    ranks: int = 1,
    kv_blocks: int = 100_000,
    rule: str = "round_robin",
    receive_every: int = 1,
    **changes: object,
) -> Run:
    """Serve requests: as they come, or as many at a time as users wait."""
    how = find_batcher(policy) if isinstance(policy, str) else policy
    limits = replace(how.limits(kv_blocks=kv_blocks), **changes)  # type: ignore[arg-type]
    records, times = Records(len(requests), ramp=concurrency or 0), PoolTimes()
    instance = Instance(
        [how.start(limits) for _ in range(ranks)],
        cost,
        ahead=how.ahead,
        limits=limits,
        records=records,
        times=times,
        receive_every=receive_every,
    )
    pool = Pool(instances=(instance,), ranks=ranks, dispatcher=Dispatcher(rule, ranks), times=times)
    source: Source = OpenSource(requests) if concurrency is None else ClosedSource(requests, concurrency)
    return Run(records=records, times=times, limits=limits, duration_s=EventLoop(source, [pool], records).run())


def drawn(seed: int, count: int, *, rate_per_s: float = 50.0, most: int = 60) -> list[Request]:
    """Short requests that come at random."""
    rng = np.random.default_rng(seed)
    times_s = np.cumsum(rng.exponential(1 / rate_per_s, count))
    return [
        Request(
            id=number,
            arrival_s=float(times_s[number]),
            prompt_tokens=int(rng.integers(1, most)),
            output_tokens=int(rng.integers(1, most)),
        )
        for number in range(count)
    ]
