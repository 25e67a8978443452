"""vLLM's scheduler: a token for everybody who runs, chunks of prompts beside them, and who came last gives way.

After `vllm/v1/core/sched/scheduler.py`, without a line of it: the budget goes to running requests
in the order in which they were admitted, a prompt's next chunk like a decode token; where blocks
run out the last of them is preempted, to be computed again, and nobody is admitted. What is left
goes to who waits, in order, until one does not fit. tests/serving/test_vllm_recorded.py compares
it, step by step, with what vLLM itself decided.

Axes: R running requests, in the order of their admission.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from moecast.errors import MoecastError
from moecast.sim.serving.batchers.batcher import Int, Limits, Scheduled
from moecast.sim.serving.block_pool import BlockPool
from moecast.sim.serving.request import Request

ID, KNOWN, PREFILL, COMPUTED, TOTAL, BLOCKS = range(6)
"""Rows of the running requests' table: number; tokens known so far; those that its prefill goes over; tokens in the
cache; tokens when it is at an end; blocks held."""


class Options(Protocol):
    """What the scheduler asks of a policy; `Vllm` says what each is."""

    @property
    def ahead(self) -> bool:
        """Asynchronous scheduling."""
        ...

    @property
    def long_prefill_token_threshold_adaptive(self) -> bool:
        """Whether the limit on a chunk depends on how many requests there are."""
        ...

    @property
    def scheduler_reserve_full_isl(self) -> bool:
        """Whether who is admitted must find room for all its known tokens."""
        ...

    @property
    def blanks_first(self) -> bool:
        """See `BlockPool`."""
        ...

    def most_of_prompt(self, budget: int, requests: int) -> int:
        """Tokens of one prompt that an iteration takes at most, with so many requests there."""
        ...


@dataclass(slots=True, eq=False)
class _Job:
    """A request that is not at an end; `known`: tokens that it waits with, `loaded`: keys that come with it."""

    request: Request
    known: int
    loaded: int = 0
    shared: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Leaver:
    """A request at an end that keeps its seat and blocks for one more iteration, behind so many who go on."""

    number: int
    blocks: int
    computed: int
    behind: int


class VllmBatcher:
    """One rank's scheduler."""

    def __init__(self, limits: Limits, policy: Options) -> None:
        self._limits, self._policy = limits, policy
        self._pool = BlockPool(
            limits.kv_blocks, limits.block_tokens, caching=limits.prefix_cache, blanks_first=policy.blanks_first
        )
        # vLLM counts its placeholder block, too
        self._spare = int(limits.watermark * (limits.kv_blocks + 1))
        self._jobs: dict[int, _Job] = {}
        self._waiting: deque[_Job] = deque()
        self._table_R: Int = np.empty((6, 0), np.int64)
        self._leaving: list[_Leaver] = []
        self._blocked = False  # the first who waits found no room, with as many running as now

    @property
    def waiting(self) -> int:
        """Requests that hold no blocks."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that hold blocks."""
        return self._table_R.shape[1] + len(self._leaving)

    @property
    def kv_blocks_used(self) -> int:
        """Blocks of running requests."""
        return self._limits.kv_blocks - self._pool.free

    def add(self, request: Request) -> None:
        """Let a request come, last in the queue."""
        self._add(_Job(request, request.prompt_tokens))

    def add_prefilled(self, request: Request) -> None:
        """Let a request come whose prompt was computed elsewhere: its keys come with it, and its first token."""
        self._add(_Job(request, request.prompt_tokens + 1, loaded=request.prompt_tokens))

    @property
    def kv_blocks_spoken_for(self) -> int:
        """Blocks of running requests."""
        return self.kv_blocks_used

    def blocks_to_enter(self, request: Request) -> int:
        """Blocks of its prompt and the token after."""
        return self._limits.blocks_of(request.prompt_tokens + 1)

    def _add(self, job: _Job) -> None:
        limits, request = self._limits, job.request
        limits.check_holds(request)
        if not limits.chunked and request.tokens - 1 > limits.max_batched_tokens:
            rule = (
                f"without chunks an iteration must take request {request.id} whole, up to {request.tokens - 1} tokens"
            )
            raise MoecastError(rule, field="max_batched_tokens", value=limits.max_batched_tokens)
        self._jobs[request.id] = job
        # behind the first, unless more requests mean a smaller chunk of it, which may find room
        self._blocked = self._blocked and bool(self._waiting) and not self._policy.long_prefill_token_threshold_adaptive
        self._waiting.append(job)

    def schedule(self) -> Scheduled:
        """Decide the next iteration."""
        counts_R, preempted = self._decide()
        if not len(counts_R) and self._leaving:  # an iteration without work takes no time: the next one
            self._release_leaving()
            counts_R, more = self._decide()
            preempted += more
        table_R = self._table_R[:, : len(counts_R)]
        samples = table_R[COMPUTED] + counts_R == table_R[KNOWN]
        return Scheduled(
            request=table_R[ID].copy(),
            tokens=counts_R,
            context=table_R[COMPUTED].copy(),
            finishes_prompt=samples & (table_R[COMPUTED] < table_R[PREFILL]),
            samples=samples,
            preempted=preempted,
        )

    def _decide(self) -> tuple[Int, tuple[int, ...]]:
        counts_R, preempted = self._of_running()
        return (counts_R if preempted else self._admit(counts_R)), preempted

    def _of_running(self) -> tuple[Int, tuple[int, ...]]:
        """Tokens of the first who run, as many of them as the budget is for, and who was preempted."""
        table_R, limits = self._table_R, self._limits
        if not table_R.shape[1]:
            return np.empty(0, np.int64), ()
        most = self._policy.most_of_prompt(limits.max_batched_tokens, self.running + self.waiting)
        counts_R = np.minimum(table_R[KNOWN] - table_R[COMPUTED], most)
        before_R = np.cumsum(counts_R) - counts_R
        counts_R = np.minimum(counts_R, limits.max_batched_tokens - before_R)
        counts_R = counts_R[counts_R > 0]
        table_R = table_R[:, : len(counts_R)]
        more_R = np.maximum(-((table_R[COMPUTED] + counts_R) // -limits.block_tokens) - table_R[BLOCKS], 0)
        more = int(more_R.sum())
        if more > self._pool.free:
            return self._grow_or_preempt(counts_R, more_R)
        self._pool.take(more)
        table_R[BLOCKS] += more_R
        for at in np.flatnonzero(table_R[COMPUTED] < table_R[PREFILL]).tolist():
            self._keep(at, int(counts_R[at]))
        return counts_R, ()

    def _grow_or_preempt(self, counts_R: Int, more_R: Int) -> tuple[Int, tuple[int, ...]]:
        """Give blocks one by one; the last who runs gives up its own until there are enough."""
        preempted: list[int] = []
        for at, more in enumerate(more_R.tolist()):
            while more > self._pool.free and self._table_R.shape[1] > at:
                preempted.append(self._preempt_last())
            if self._table_R.shape[1] <= at:
                break
            self._pool.take(more)
            self._table_R[BLOCKS, at] += more
            self._keep(at, int(counts_R[at]))
        return counts_R[: self._table_R.shape[1]], tuple(preempted)

    def _preempt_last(self) -> int:
        """Let the last who runs wait in front of all others, with all its tokens to compute again."""
        if self._leaving and self._leaving[-1].behind >= self._table_R.shape[1]:
            leaver = self._leaving.pop()  # vLLM does not yet know that it is at an end
            self._release(leaver)
            return leaver.number
        number, known, prefill, computed, _, blocks = self._table_R[:, -1].tolist()
        self._table_R = self._table_R[:, :-1]
        job = self._jobs[number]
        # a block whose last token is on its way has no content to be found by
        findable = computed - (self._policy.ahead and computed > prefill)
        self._pool.release(job.request, blocks, job.shared, findable, ends=False)
        job.known, job.loaded, job.shared = known, 0, []
        self._waiting.appendleft(job)
        self._blocked = False
        return int(number)

    def _keep(self, at: int, count: int) -> None:
        """Make the full blocks of a prompt's beginning findable, those that this iteration fills too."""
        job = self._jobs[int(self._table_R[ID, at])]
        self._pool.keep(job.request, job.shared, int(self._table_R[COMPUTED, at]) + count)

    def _admit(self, counts_R: Int) -> Int:
        """Let who waits run, in order, until one does not fit; the counts with theirs."""
        limits, counts = self._limits, list[int]()
        columns: list[tuple[int, ...]] = []
        budget = limits.max_batched_tokens - int(counts_R.sum())
        most = self._policy.most_of_prompt(limits.max_batched_tokens, self.running + self.waiting)
        self._blocked = False
        while self._waiting and budget > 0 and self.running + len(columns) < limits.max_sequences:
            job = self._waiting[0]
            entered = self._enter(job, min(budget, most), alone=not self.running and not columns, most=most)
            if entered is None:
                # without chunks a prompt may have found too little budget, beside another that
                # leaves it next time
                self._blocked = limits.chunked or (not columns and bool((counts_R == 1).all()))
                break
            context, count, blocks = entered
            self._waiting.popleft()
            columns.append(
                (job.request.id, job.known, job.known - (job.loaded > 0), context, job.request.tokens, blocks)
            )
            counts.append(count)
            budget -= count
        if columns:
            self._table_R = np.concatenate([self._table_R, np.array(columns, np.int64).T], axis=1)
            counts_R = np.concatenate([counts_R, np.array(counts, np.int64)])
        return counts_R

    def _enter(self, job: _Job, budget: int, *, alone: bool, most: int) -> tuple[int, int, int] | None:
        """Give a waiting request its blocks: tokens found, tokens to compute now, blocks held. None: no room."""
        limits, pool, request = self._limits, self._pool, job.request
        found = pool.find(request, job.known)
        context = max(found.blocks * limits.block_tokens, job.loaded)
        left = job.known - context
        if not limits.chunked and min(left, most) > budget:
            return None
        count = min(left, budget)
        blocks = limits.blocks_of(context + count)
        reserved = limits.blocks_of(job.known) if self._policy.scheduler_reserve_full_isl else blocks
        spare = 0 if alone else self._spare
        if reserved - found.blocks + pool.idle(found) + spare > pool.free:
            return None
        pool.hold(request, found)
        pool.take(blocks - found.blocks)
        job.shared = found.shared
        pool.keep(request, job.shared, context + count)
        return context, count, blocks

    def done(self, scheduled: Scheduled) -> tuple[int, ...]:
        """End an iteration."""
        self._release_leaving()
        table_R = self._table_R[:, : len(scheduled)]
        table_R[COMPUTED] += scheduled.tokens
        table_R[KNOWN] += scheduled.samples
        ended_R = table_R[KNOWN] == table_R[TOTAL]
        if not ended_R.any():
            return ()
        places = np.flatnonzero(ended_R)
        self._leaving = [
            _Leaver(number, blocks, computed, place - gone)
            for gone, (place, (number, _, _, computed, _, blocks)) in enumerate(
                zip(places.tolist(), table_R[:, places].T.tolist(), strict=True)
            )
        ]
        self._table_R = np.delete(self._table_R, places, axis=1)
        ended = tuple(leaver.number for leaver in self._leaving)
        if not self._policy.ahead:
            self._release_leaving()
        return ended

    def _release_leaving(self) -> None:
        for leaver in self._leaving:
            self._release(leaver)
        self._leaving = []

    def _release(self, leaver: _Leaver) -> None:
        job = self._jobs.pop(leaver.number)
        self._pool.release(job.request, leaver.blocks, job.shared, leaver.computed, ends=True)
        self._blocked = False

    def quiet_steps(self) -> int:
        """How many of the next iterations just decode whoever runs."""
        table_R, limits = self._table_R, self._limits
        running = table_R.shape[1]
        if self._leaving or not running or running > limits.max_batched_tokens:
            return 0
        full = self._blocked or running >= min(limits.max_sequences, limits.max_batched_tokens)
        if (self._waiting and not full) or (table_R[KNOWN] - table_R[COMPUTED] != 1).any():
            return 0
        if (table_R[COMPUTED] < table_R[PREFILL]).any():
            return 0
        most = int((table_R[TOTAL] - table_R[KNOWN]).min()) - 1
        while most > 0 and self._blocks_of_steps(most) > self._pool.free:
            most //= 2
        return max(most, 0)

    def _blocks_of_steps(self, steps: int) -> int:
        """Blocks that so many quiet iterations take."""
        table_R = self._table_R
        after = int((-((table_R[COMPUTED] + steps) // -self._limits.block_tokens)).sum())
        return after - int(table_R[BLOCKS].sum())

    def advance(self, steps: int) -> None:
        """Take that many iterations at once."""
        table_R = self._table_R
        self._pool.take(self._blocks_of_steps(steps))
        table_R[COMPUTED] += steps
        table_R[KNOWN] += steps
        table_R[BLOCKS] = -(table_R[COMPUTED] // -self._limits.block_tokens)
