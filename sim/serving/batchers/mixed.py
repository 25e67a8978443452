"""Mixed batching under a token budget, after no engine in particular: running requests first, then prompts by chunks.

Sarathi-Serve's stall-free batching (arXiv 2403.02310), as engines have it by now: a decode token of
everybody who runs, what is left of the budget for prompts in order of arrival. Where blocks run
out, who came last is preempted.
"""

from __future__ import annotations

from dataclasses import dataclass

from moecast.sim.serving.batchers.batcher import Batcher, Limits
from moecast.sim.serving.batchers.queued import Chosen, Job, QueuedBatcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """Decode beside chunks of prompts.

    Parameters
    ----------
    name
        The engine that it stands for.
    ahead
        Whether iterations are decided while the one before runs.
    swaps
        Preemption by swap instead of recompute.
    """

    name: str = "neutral"
    ahead: bool = False
    swaps: bool = False

    def limits(self, *, kv_blocks: int, block_tokens: int | None = None) -> Limits:
        """8,192 tokens, 1,024 requests, blocks of 16."""
        size = 16 if block_tokens is None else block_tokens
        return Limits(max_batched_tokens=8192, max_sequences=1024, kv_blocks=kv_blocks, block_tokens=size)

    def start(self, limits: Limits) -> Batcher:
        """Make an empty scheduler."""
        return MixedBatcher(limits, late=self.ahead, swaps=self.swaps)


class MixedBatcher(QueuedBatcher):
    """One rank's mixed batches."""

    def _choose(self) -> Chosen:
        preempted: list[int] = []
        parts, swapped = self._of_running(preempted)
        if not preempted:
            swapped += self._of_waiting(parts, self._limits.max_batched_tokens - sum(count for _, count in parts))
        return Chosen(parts, tuple(preempted), swapped)

    def _of_running(self, preempted: list[int]) -> tuple[list[tuple[Job, int]], int]:
        """Everybody who runs, in order of arrival, as far as budget and blocks go."""
        parts: list[tuple[Job, int]] = []
        budget, swapped, at = self._limits.max_batched_tokens, 0, 0
        block = self._limits.block_tokens
        while at < len(self._running) and budget > 0:
            job = self._running[at]
            left = job.left
            if left == 1 and job.computed < job.blocks * block:  # nearly everybody: a token for which there is room
                parts.append((job, 1))
                budget, at = budget - 1, at + 1
                continue
            count = self._of_budget(left, budget)
            while not self._grow(job, job.computed + count):
                victim = self._running[-1]
                swapped += self._preempt(victim)
                preempted.append(victim.request.id)
                if victim is job:
                    return parts, swapped
            if count:
                parts.append((job, count))
            budget -= count
            at += 1
        return parts, swapped

    def _of_budget(self, left: int, budget: int) -> int:
        """Tokens of so many that are computed now: whole or not at all without chunks, unless no budget would do."""
        whole = not self._limits.chunked and left <= self._limits.max_batched_tokens
        return left if left <= budget else (0 if whole else budget)

    def _of_waiting(self, parts: list[tuple[Job, int]], budget: int) -> int:
        """Let who waits enter in order, until one does not; the blocks that are swapped in."""
        limits, swapped = self._limits, 0
        spare = limits.watermark * limits.kv_blocks
        while self._waiting and budget > 0:
            job = self._waiting[0]
            found = self._found(job)
            start = max(found, job.swapped)
            left = job.request.prompt_tokens + job.given - start
            count = self._of_budget(left, budget)
            # An empty cache takes anybody: a watermark above that would stop the engine for good.
            leave = spare if self._running else 0.0
            full = self.running >= limits.max_sequences
            if full or not self._has_free(job, start + count, found, leave=leave):
                self._blocked = True
                break
            if not count:
                break
            swapped += 0 if job.moved else limits.blocks_of(job.swapped)
            self._waiting.popleft()
            self._enter(job, start + count, found=found)
            parts.append((job, count))
            budget -= count
        return swapped
