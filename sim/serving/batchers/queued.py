"""What batchers have in common: a queue in order of arrival, running requests, and their blocks.

What an iteration is made of is each batcher's own `_choose`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from moecast.sim.serving.batchers.batcher import MOST, Limits, Scheduled
from moecast.sim.serving.block_pool import BlockPool, Found
from moecast.sim.serving.request import Request


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way.

    Parameters
    ----------
    computed
        Tokens whose keys are in the cache.
    given
        Output tokens that it has.
    blocks, shared
        Blocks that it holds, and which of them others may find, by number.
    swapped
        Tokens whose keys wait in the host's memory, or came from another engine.
    moved
        They came: nothing is copied from the host.
    """

    request: Request
    computed: int = 0
    given: int = 0
    blocks: int = 0
    shared: list[int] = field(default_factory=list)
    swapped: int = 0
    moved: bool = False

    @property
    def left(self) -> int:
        """Tokens to be computed before it gets its next one: 1 in decode."""
        return self.request.prompt_tokens + self.given - self.computed

    @property
    def decodes(self) -> bool:
        """Whether it is past its prefill."""
        return self.given > 0 and self.request.prompt_tokens + self.given == self.computed + 1

    @property
    def to_give(self) -> int:
        """Output tokens that it has not got."""
        return self.request.output_tokens - self.given


@dataclass(frozen=True, slots=True)
class Chosen:
    """An iteration as a batcher chooses it: jobs and how many tokens of each."""

    parts: list[tuple[Job, int]]
    preempted: tuple[int, ...] = ()
    swapped_blocks: int = 0


class QueuedBatcher(ABC):
    """A batcher over a queue; subclasses choose.

    Parameters
    ----------
    limits
        Tokens, sequences and blocks.
    late
        Requests leave one iteration after their last token, since the next one had been decided by
        then.
    swaps
        Who is preempted keeps its keys in the host's memory, instead of computing them again.
    """

    def __init__(self, limits: Limits, *, late: bool = False, swaps: bool = False) -> None:
        self._limits = limits
        self._late, self._swaps = late, swaps
        self._cache = BlockPool(limits.kv_blocks, limits.block_tokens, caching=limits.prefix_cache)
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._leaving: list[Job] = []
        self._blocked = False  # nobody who waits can enter before someone leaves
        self._jobs: dict[int, Job] = {}

    @property
    def waiting(self) -> int:
        """Requests that hold no blocks."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that hold blocks."""
        return len(self._running) + len(self._leaving)

    @property
    def kv_blocks_used(self) -> int:
        """Blocks of running requests."""
        return self._cache.used

    def add(self, request: Request) -> None:
        """Let a request come, last in the queue."""
        self._limits.check_holds(request)
        job = Job(request)
        self._jobs[request.id] = job
        self._waiting.append(job)
        # The first in the queue still stands in the way of all others, if there was one.
        self._blocked = self._blocked and len(self._waiting) > 1

    def add_prefilled(self, request: Request) -> None:
        """Let a request come whose prompt another engine computed: its keys and its first token come with it."""
        self.add(request)
        job = self._waiting[-1]
        job.given, job.swapped, job.moved = 1, request.prompt_tokens, True

    @property
    def kv_blocks_spoken_for(self) -> int:
        """Blocks of running requests."""
        return self._cache.used

    def blocks_to_enter(self, request: Request) -> int:
        """Blocks of its prompt and the token after."""
        return self._limits.blocks_of(request.prompt_tokens + 1)

    @abstractmethod
    def _choose(self) -> Chosen:
        """Choose the next iteration and take the blocks for it."""

    def schedule(self) -> Scheduled:
        """Decide the next iteration."""
        chosen = self._choose()
        parts = chosen.parts
        if not parts and not self._leaving:
            return Scheduled(preempted=chosen.preempted, swapped_blocks=chosen.swapped_blocks)
        jobs = [job for job, _ in parts]
        tokens_R = np.array([count for _, count in parts], np.int64)
        context_R = np.array([job.computed for job in jobs], np.int64)
        given_R = np.array([job.given for job in jobs], np.int64)
        left_R = np.array([job.request.prompt_tokens for job in jobs], np.int64) + given_R - context_R
        decodes_R, samples_R = (left_R == 1) & (given_R > 0), left_R == tokens_R
        wasted = self._leaving if decodes_R.any() or not parts else []
        return Scheduled(
            request=np.array([job.request.id for job in jobs], np.int64),
            tokens=tokens_R,
            context=context_R,
            finishes_prompt=samples_R & ~decodes_R,
            samples=samples_R,
            preempted=chosen.preempted,
            swapped_blocks=chosen.swapped_blocks,
            wasted=len(wasted),
            wasted_context=sum(job.computed for job in wasted),
        )

    def done(self, scheduled: Scheduled) -> tuple[int, ...]:
        """End an iteration."""
        self._release(self._leaving)
        ended = []
        jobs, keeps = self._jobs, self._limits.prefix_cache
        for id_, tokens, samples in zip(
            scheduled.request.tolist(), scheduled.tokens.tolist(), scheduled.samples.tolist(), strict=True
        ):
            job = jobs[id_]
            job.computed += tokens
            if keeps and tokens > 1:
                self._cache.keep(job.request, job.shared, job.computed)
            if samples:
                job.given += 1
                if job.given == job.request.output_tokens:
                    ended.append(job)
        if ended:
            gone = {job.request.id for job in ended}
            self._running = [job for job in self._running if job.request.id not in gone]
            if self._late:
                self._leaving = ended
            else:
                self._release(ended)
        return tuple(job.request.id for job in ended)

    def _release(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._leave(job)
            del self._jobs[job.request.id]
            self._blocked = False
        self._leaving = []

    def _enter(self, job: Job, tokens: int, *, found: int = 0) -> None:
        """Let a job run, holding so many tokens, `found` of which were kept for its prefix."""
        there = self._cache.find(job.request, job.request.prompt_tokens) if found else Found()
        self._cache.hold(job.request, there)
        job.blocks, job.shared = max(there.blocks, self._limits.blocks_of(tokens)), there.shared
        self._cache.take(job.blocks - there.blocks)
        job.computed = max(found, job.swapped)
        job.swapped, job.moved = 0, False
        self._running.append(job)

    def _grow(self, job: Job, tokens: int) -> bool:
        """Let a job hold so many tokens in all; whether there was room."""
        more = self._limits.blocks_of(tokens) - job.blocks
        if more <= 0:
            return True
        if more > self._cache.free:
            return False
        self._cache.take(more)
        job.blocks += more
        return True

    def _leave(self, job: Job) -> None:
        """Take a job's blocks; those that others may find stay findable."""
        findable = len(job.shared) * self._limits.block_tokens
        self._cache.release(job.request, job.blocks, job.shared, findable, ends=True)
        job.blocks, job.shared = 0, []

    def _preempt(self, job: Job) -> int:
        """Take a running job's blocks; it waits in front of all others. The blocks that are swapped out, if any."""
        self._running.remove(job)
        self._leave(job)
        job.swapped = job.computed if self._swaps else 0
        job.computed = 0
        self._waiting.appendleft(job)
        return self._limits.blocks_of(job.swapped)

    def _found(self, job: Job) -> int:
        """Tokens of a waiting job that need no computing."""
        if job.swapped:
            return 0
        return self._cache.find(job.request, job.request.prompt_tokens).blocks * self._limits.block_tokens

    def _has_free(self, job: Job, tokens: int, found: int, *, leave: float = 0.0) -> bool:
        """Whether blocks for so many tokens of a waiting job are free, and `leave` blocks beside."""
        needed = self._limits.blocks_of(tokens)
        if found:  # those that nobody holds stop being free when they are held
            there = self._cache.find(job.request, job.request.prompt_tokens)
            needed += self._cache.idle(there) - there.blocks
        return max(needed, 0) + leave <= self._cache.free

    def quiet_steps(self) -> int:
        """How many of the next iterations just decode whoever runs."""
        if self._leaving or not self._running or (self._waiting and not self._blocked):
            return 0
        if len(self._running) > self._limits.max_batched_tokens or not all(job.decodes for job in self._running):
            return 0
        last = min(job.request.output_tokens - job.given for job in self._running) - 1
        # Each running request opens a block every `block_tokens` iterations, and the first one
        # perhaps at once.
        rounds = self._cache.free // len(self._running)
        room = (rounds - 1) * self._limits.block_tokens if rounds else 0
        return max(0, min(last, room, MOST))

    def advance(self, steps: int) -> None:
        """Take that many iterations at once."""
        block = self._limits.block_tokens
        for job in self._running:
            job.computed += steps
            job.given += steps
            if job.computed > job.blocks * block and not self._grow(job, job.computed):
                raise RuntimeError("more iterations at once than there are blocks for")
