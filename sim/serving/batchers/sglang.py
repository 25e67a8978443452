"""SGLang's batching: prompts first, by chunks, while everybody else waits; then decode steps of all who run.

After SGLang's scheduler (`managers/scheduler.py`, `schedule_policy.py`): a prompt enters where the free tokens hold it,
its answer, and what those who run are still expected to need: `new_token_ratio` of it, which falls with every decode
step and rises when the cache runs out. Who has fewest output tokens is retracted then, and computed again later.
Scheduling overlaps with the iteration before.
"""

from __future__ import annotations

from dataclasses import dataclass

from moecast.errors import MoecastError
from moecast.sim.serving.batchers.batcher import Batcher, Limits
from moecast.sim.serving.batchers.queued import Chosen, Job, QueuedBatcher
from moecast.sim.serving.request import Request

CLIP_NEW_TOKENS = 4096
"""Of a request's answer no more is ever asked of the cache in advance (SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION)."""
RESERVED_DECODE_TOKENS = 512
"""What a decode worker keeps free for each request, where prompts come from others (num_reserved_decode_tokens)."""
RATIO_MIN_FACTOR, RATIO_DECAY_STEPS, RETRACT_STEPS = 0.14, 600, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sglang:
    """Prefill first.

    Parameters
    ----------
    ahead
        Overlap scheduling, the default of the engine.
    max_prefill_tokens
        Prompt tokens of an iteration, over all its chunks.
    init_ratio
        Part of the output still to come that admission leaves room for, at first.
    mix
        Decode tokens ride along with chunks (`--enable-mixed-chunk`).
    """

    name: str = "sglang"
    ahead: bool = True
    max_prefill_tokens: int = 16384
    init_ratio: float = 0.7
    mix: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 < self.init_ratio <= 1:
            raise MoecastError("more than 0, at most 1", field="init_ratio", value=self.init_ratio)
        if self.max_prefill_tokens < 1:
            raise MoecastError("at least 1", field="max_prefill_tokens", value=self.max_prefill_tokens)

    def limits(self, *, kv_blocks: int, block_tokens: int | None = None) -> Limits:
        """Chunks of 8,192 tokens, a block a token; no limit on sequences but memory's."""
        size = 1 if block_tokens is None else block_tokens
        return Limits(max_batched_tokens=8192, max_sequences=4096, kv_blocks=kv_blocks, block_tokens=size)

    def start(self, limits: Limits) -> Batcher:
        """Make an empty scheduler."""
        return SglangBatcher(limits, self)


class SglangBatcher(QueuedBatcher):
    """One rank's prefill batches and decode batches."""

    def __init__(self, limits: Limits, policy: Sglang) -> None:
        super().__init__(limits, late=policy.ahead)
        self._policy = policy
        self._least_ratio = policy.init_ratio * RATIO_MIN_FACTOR
        self._ratio = policy.init_ratio
        self._decay = (self._ratio - self._least_ratio) / RATIO_DECAY_STEPS

    def _choose(self) -> Chosen:
        parts = self._prefill()
        if parts and not self._policy.mix:
            return Chosen(parts)
        chunked = {job.request.id for job, _ in parts}
        preempted = self._retract()
        self._ratio = max(self._least_ratio, self._ratio - self._decay)
        decodes = [(job, 1) for job in self._running if job.decodes and job.request.id not in chunked]
        for job, _ in decodes:
            self._grow(job, job.computed + 1)
        return Chosen([*parts, *decodes], preempted)

    def _prefill(self) -> list[tuple[Job, int]]:
        """Chunks of this iteration: who is in the middle of a prompt first, then who waits, in order."""
        self._let_in_moved()
        chunk, tokens = self._limits.max_batched_tokens, self._policy.max_prefill_tokens
        parts: list[tuple[Job, int]] = []
        for job in self._running:
            if not job.decodes and chunk > 0:
                count = min(job.left, chunk)
                if self._grow(job, job.computed + count):
                    parts.append((job, count))
                    chunk, tokens = chunk - count, tokens - count
        if self._waiting and not self._blocked and chunk > 0:
            self._admit(parts, chunk, tokens)
        return parts

    def _let_in_moved(self) -> None:
        """Let in whose prompts other engines computed, where the cache has room: they take no prefill step."""
        while self._waiting and self._waiting[0].moved and self.running < self._limits.max_sequences:
            job = self._waiting[0]
            if not self._has_free(job, job.swapped + 1, 0):
                return
            self._waiting.popleft()
            self._enter(job, job.swapped)

    @property
    def kv_blocks_spoken_for(self) -> int:
        """Blocks of running requests, and of the tokens that a decode worker keeps free for each."""
        ahead = sum(min(job.to_give, RESERVED_DECODE_TOKENS) for job in self._running)
        return self._cache.used + self._limits.blocks_of(ahead)

    def blocks_to_enter(self, request: Request) -> int:
        """Blocks of its prompt, and of the tokens that are kept free for it."""
        ahead = min(request.output_tokens, RESERVED_DECODE_TOKENS)
        return self._limits.blocks_of(request.prompt_tokens + ahead)

    def _admit(self, parts: list[tuple[Job, int]], chunk: int, tokens: int) -> None:
        limits = self._limits
        room = self._room()
        while self._waiting and chunk > 0 and tokens > 0:
            job = self._waiting[0]
            if job.moved:
                return
            found = self._found(job)
            left = job.request.prompt_tokens + job.given - found
            wanted = left + min(job.to_give, CLIP_NEW_TOKENS)
            alone = not self._running
            if self.running >= limits.max_sequences or (wanted >= room and not alone):
                self._blocked = True
                return
            count = min(left, chunk) if limits.chunked or not parts else left
            if count > chunk or not self._has_free(job, found + count, found):
                return
            self._waiting.popleft()
            self._enter(job, found + count, found=found)
            parts.append((job, count))
            room, chunk, tokens = room - wanted, chunk - count, tokens - count

    def _room(self) -> float:
        """Free tokens less what those who run are expected to need."""
        expected = sum(min(job.to_give, CLIP_NEW_TOKENS) for job in self._running) * self._ratio
        return self._cache.free * self._limits.block_tokens - expected

    def _retract(self) -> tuple[int, ...]:
        """Take the blocks of who has fewest output tokens until the others have room for a step."""
        gone: list[int] = []
        while self._short() and len(self._running) > 1:
            running = [job for job in self._running if job.decodes]
            victim = min(running, key=lambda job: (job.given, -job.request.prompt_tokens))
            self._preempt(victim)
            gone.append(victim.request.id)
        if gone:
            given = sum(job.given for job in self._running)
            wanted = sum(job.request.output_tokens for job in self._running)
            self._ratio = min(1.0, (given + RETRACT_STEPS * len(self._running)) / max(wanted, 1))
            self._blocked = True
        return tuple(gone)

    def _short(self) -> bool:
        """Whether the next step wants more blocks than are free."""
        if self._cache.free >= len(self._running):
            return False
        size = self._limits.block_tokens
        opened = sum(job.decodes and job.computed % size == 0 for job in self._running)
        return opened > self._cache.free

    def advance(self, steps: int) -> None:
        """Take that many decode steps at once."""
        super().advance(steps)
        self._ratio = max(self._least_ratio, self._ratio - steps * self._decay)
