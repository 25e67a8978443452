"""BatchLLM's order for work that comes in bulk: requests of one prefix together, those with most to decode first.

- Requests that share a prefix are admitted one after another, so that it is computed once and given
  up early.
- Groups with the largest ratio of tokens to decode to tokens of prompts go first: their decode is
  then there to be mixed with the prompts of later groups, and the end of the run is not decode
  alone in small batches.
- Memory alone limits how many run, not their number.

After "BatchLLM: Optimizing Large Batched LLM Inference with Global Prefix Sharing and
Throughput-oriented Token Batching" (arXiv 2412.03594), from its description; never run beside it.
It wants to know about how long answers will be; here it is told. Prefixes are grouped on one rank:
dispatch to several ranks splits them.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

from moecast.sim.serving.batchers.batcher import Batcher, Limits
from moecast.sim.serving.batchers.mixed import MixedBatcher
from moecast.sim.serving.batchers.queued import Job
from moecast.sim.serving.request import Request

Group = tuple[int, int]
"""A prefix group (0, number), or a request of none (1, id)."""

MOST_SEQUENCES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLlm:
    """Prefix groups by their share of decode.

    Parameters
    ----------
    by_prefix, decode_first
        Whether groups stay together, and whether those with most to decode go first.
    """

    name: str = "batchllm"
    ahead: bool = False
    by_prefix: bool = True
    decode_first: bool = True

    def limits(self, *, kv_blocks: int, block_tokens: int | None = None) -> Limits:
        """8,192 tokens, as many requests as the cache holds, blocks of 16, prefixes cached."""
        size = 16 if block_tokens is None else block_tokens
        return Limits(
            max_batched_tokens=8192,
            max_sequences=MOST_SEQUENCES,
            kv_blocks=kv_blocks,
            block_tokens=size,
            prefix_cache=True,
        )

    def start(self, limits: Limits) -> Batcher:
        """Make an empty scheduler."""
        return BatchLlmBatcher(limits, self)


class BatchLlmBatcher(MixedBatcher):
    """One rank's mixed batches of requests in BatchLLM's order."""

    def __init__(self, limits: Limits, policy: BatchLlm) -> None:
        super().__init__(limits)
        self._policy = policy
        self._in_order = True

    def add(self, request: Request) -> None:
        """Let a request come; where it belongs is found before the next iteration."""
        super().add(request)
        self._in_order = self._blocked = False

    def _of_waiting(self, parts: list[tuple[Job, int]], budget: int) -> int:
        if not self._in_order:
            self._waiting = deque(self._sorted())
            self._in_order = True
        return super()._of_waiting(parts, budget)

    def _sorted(self) -> list[Job]:
        """Who waits: those who lost their blocks, then groups, the one that is being admitted before all others."""
        groups: dict[Group, list[Job]] = defaultdict(list)
        again = [job for job in self._waiting if job.given]
        for job in self._waiting:
            if not job.given:
                groups[self._group(job.request)].append(job)
        last = self._group(self._running[-1].request) if self._running else None
        order = sorted(groups, key=lambda group: (group != last, -self._ratio(groups[group]), group))
        return [*again, *(job for group in order for job in self._within(groups[group]))]

    def _group(self, request: Request) -> Group:
        shares = self._policy.by_prefix and request.prefix_group >= 0
        return (0, request.prefix_group) if shares else (1, request.id)

    def _ratio(self, jobs: list[Job]) -> float:
        """Tokens to decode for each of prompts, of which what they share is computed once."""
        if not self._policy.decode_first:
            return 0.0
        shared = min(job.request.prefix_tokens for job in jobs) if self._group(jobs[0].request)[0] == 0 else 0
        prompts = shared + sum(job.request.prompt_tokens - shared for job in jobs)
        return sum(job.request.output_tokens for job in jobs) / max(prompts, 1)

    def _within(self, jobs: list[Job]) -> list[Job]:
        if not self._policy.decode_first:
            return jobs
        return sorted(jobs, key=lambda job: (-job.request.output_tokens / job.request.prompt_tokens, job.request.id))
