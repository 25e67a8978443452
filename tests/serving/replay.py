"""Drive a batcher over a recorded trace, step by step, as the engine's scheduler was driven."""

from collections import deque

from moecast.sim.serving.batchers import Batcher, Limits
from moecast.sim.serving.request import Request
from tests.recordings.scheduler_traces import Settings, Step, Trace


def limits_of(settings: Settings) -> Limits:
    return Limits(
        max_batched_tokens=settings.max_num_batched_tokens,
        max_sequences=settings.max_num_seqs,
        kv_blocks=settings.kv_blocks,
        block_tokens=settings.block_size,
        watermark=settings.watermark,
        chunked=settings.chunked,
        prefix_cache=settings.prefix_caching,
    )


def request_of(index: int, row: tuple[int, int, int, int, int]) -> Request:
    arrival, prompt, output, group, prefix = row
    return Request(
        id=index,
        arrival_s=float(arrival),
        prompt_tokens=prompt,
        output_tokens=output,
        prefix_group=group,
        prefix_tokens=prefix,
    )


def replay(batcher: Batcher, trace: Trace, *, most: int) -> list[Step]:
    """At most so many steps that it takes; like the recorded ones, without those in which nothing is computed."""
    waiting = deque(enumerate(trace.requests))
    steps: list[Step] = []
    entered: set[int] = set()
    preempted: list[int] = []
    now = 0
    while (waiting or batcher.running or batcher.waiting) and len(steps) < most:
        if not (batcher.running or batcher.waiting):
            now = max(now, waiting[0][1][0])
        while waiting and waiting[0][1][0] <= now:
            batcher.add(request_of(*waiting.popleft()))
        scheduled = batcher.schedule()
        preempted += scheduled.preempted
        if not len(scheduled):
            if scheduled.wasted:
                batcher.done(scheduled)
                now += 1
            continue
        entered -= set(preempted)
        contexts = zip(scheduled.request.tolist(), scheduled.context.tolist(), strict=True)
        admitted = [(request, context) for request, context in contexts if request not in entered]
        entered |= {request for request, _ in admitted}
        used = batcher.kv_blocks_used
        steps.append(
            Step(
                requests=scheduled.request.tolist(),
                tokens=scheduled.tokens.tolist(),
                admitted=admitted,
                preempted=preempted,
                finished=list(batcher.done(scheduled)),
                blocks_used=used,
            )
        )
        preempted = []
        now += 1
    return steps


def same(left: list[Step], right: list[Step]) -> float:
    """Part of the steps of both in which they are equal."""
    return sum(a == b for a, b in zip(left, right, strict=False)) / max(len(left), len(right))
