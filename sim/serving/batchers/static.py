"""Static batching: a batch is filled, computed to its last token, and only then is the next one filled.

What servers did before continuous batching (Orca, OSDI 2022): short answers wait for the longest
one of their batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from moecast.sim.serving.batchers.batcher import Batcher, Limits
from moecast.sim.serving.batchers.queued import Chosen, Job, QueuedBatcher
from moecast.sim.serving.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """Batches that nobody joins."""

    name: str = "static"
    ahead: bool = False

    def limits(self, *, kv_blocks: int, block_tokens: int | None = None) -> Limits:
        """8,192 tokens, 256 requests, blocks of 16."""
        size = 16 if block_tokens is None else block_tokens
        return Limits(max_batched_tokens=8192, max_sequences=256, kv_blocks=kv_blocks, block_tokens=size)

    def start(self, limits: Limits) -> Batcher:
        """Make an empty scheduler."""
        return StaticBatcher(limits)


class StaticBatcher(QueuedBatcher):
    """One rank's static batches. A request holds the blocks of its whole answer from the start."""

    def _choose(self) -> Chosen:
        if not self._running:
            self._fill()
        prompts = [job for job in self._running if not job.decodes]
        if not prompts:
            return Chosen([(job, 1) for job in self._running])
        parts: list[tuple[Job, int]] = []
        budget = self._limits.max_batched_tokens
        for job in prompts:
            count = min(job.left, budget)
            if count:
                parts.append((job, count))
            budget -= count
        return Chosen(parts)

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._limits.max_sequences:
            job = self._waiting[0]
            found, tokens = self._found(job), job.request.tokens - 1
            if not self._has_free(job, tokens, found):
                break
            self._waiting.popleft()
            self._enter(job, tokens, found=found)
        self._blocked = True

    def blocks_to_enter(self, request: Request) -> int:
        """Blocks of its prompt and whole answer."""
        return self._limits.blocks_of(request.tokens - 1)

    def _grow(self, job: Job, tokens: int) -> bool:
        del job, tokens  # the blocks have been there from the start
        return True

    def add(self, request):  # type: ignore[no-untyped-def]
        """Let a request come; it waits for the next batch."""
        super().add(request)
        self._blocked = bool(self._running)
