"""SGLang's batching: prompts first, by chunks, while everybody else waits.

Then decode steps of all who run.

After SGLang's scheduler (`managers/scheduler.py`, `schedule_batch.py`, 0.5.9), with which it is
compared decision by decision (docs/serving_schedulers.md). Who may enter is `sglang_admission`'s to
say. A batch that was once found full stays so until a decode step finds that somebody is gone. Who
has fewest output tokens is retracted where the cache runs out, waits behind all others, and is
computed again. Scheduling overlaps with the iteration before, so that the scheduler does not know
the tokens of that one yet: who is at an end is decoded once more, and a token of who is retracted
meanwhile is lost.
"""

from __future__ import annotations

from dataclasses import dataclass

from moecast.errors import MoecastError
from moecast.sim.serving.batchers.batcher import Batcher, Limits, Scheduled
from moecast.sim.serving.batchers.queued import Chosen, Job, QueuedBatcher
from moecast.sim.serving.batchers.sglang_admission import Admission, Asking, Verdict
from moecast.sim.serving.request import Request

RESERVED_DECODE_TOKENS = 512
"""What a decode worker keeps free for each request, where prompts come from others (num_reserved_decode_tokens)."""
RATIO_MIN_FACTOR, RATIO_DECAY_STEPS, RETRACT_STEPS = 0.14, 600, 20

CHUNK_TOKENS, LARGE_CHUNK_TOKENS, LARGE_MEMORY_BYTES = 8192, 16384, 160 << 30


def chunk_tokens(memory_bytes: float, *, sharers: int) -> int:
    """The engine's default for prompt tokens of an iteration on each of the attention-DP ranks that share them.

    `memory_bytes`: of a GPU, from 60 GiB on.
    """
    return (LARGE_CHUNK_TOKENS if memory_bytes >= LARGE_MEMORY_BYTES else CHUNK_TOKENS) // sharers


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
    ignore_eos
        Requests do not end by themselves, and no prefix is kept (`--disable-radix-cache`):
        admission reckons with their lengths.
    """

    name: str = "sglang"
    ahead: bool = True
    max_prefill_tokens: int = 16384
    init_ratio: float = 0.7
    mix: bool = False
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 < self.init_ratio <= 1:
            raise MoecastError("more than 0, at most 1", field="init_ratio", value=self.init_ratio)
        if self.max_prefill_tokens < 1:
            rule = "at least 1"
            raise MoecastError(rule, field="max_prefill_tokens", value=self.max_prefill_tokens)

    def limits(self, *, kv_blocks: int, block_tokens: int | None = None) -> Limits:
        """Chunks of 8,192 tokens, a block a token; no limit on sequences but memory's."""
        size = 1 if block_tokens is None else block_tokens
        return Limits(max_batched_tokens=CHUNK_TOKENS, max_sequences=4096, kv_blocks=kv_blocks, block_tokens=size)

    def start(self, limits: Limits) -> Batcher:
        """Make an empty scheduler."""
        return SglangBatcher(limits, self)


class SglangBatcher(QueuedBatcher):
    """One rank's prefill batches and decode batches.

    `_batch` is the engine's running batch, in its order: it has those who are at an end until a
    decode step leaves them out. Who prefilled joins it at the next decision.
    """

    def __init__(self, limits: Limits, policy: Sglang) -> None:
        super().__init__(limits, late=policy.ahead)
        self._policy = policy
        self._least_ratio = policy.init_ratio * RATIO_MIN_FACTOR
        self._ratio = policy.init_ratio
        self._decay = (self._ratio - self._least_ratio) / RATIO_DECAY_STEPS
        self._batch: list[Job] = []
        self._joining: list[Job] = []
        self._chunked: Job | None = None
        self._full = False
        # kept until something changes, since it is asked for again and again
        self._ahead_tokens: int | None = None
        self._unknown: set[int] = set()
        self._lost: set[int] = set()

    def add(self, request: Request) -> None:
        """Let a request come, last in the queue."""
        if not (self._running or self._leaving or self._waiting):
            # it idles: iterations of nothing have left out who ended
            self._batch, self._joining, self._full = [], [], False
        super().add(request)

    def _choose(self) -> Chosen:
        self._ahead_tokens = None
        self._let_in_moved()
        self._join()
        chosen = self._iteration()
        if not chosen.parts and not self._leaving and self._waiting:
            # an iteration of nothing takes no time: who ended is left out by now
            self._let_in_moved()
            chosen = self._iteration()
        return chosen

    def _iteration(self) -> Chosen:
        parts = self._prefill()
        self._joining = [job for job, _ in parts]
        if parts and not self._policy.mix:
            return Chosen(parts)
        decodes, preempted = self._decode()
        return Chosen([*parts, *decodes], preempted)

    def done(self, scheduled: Scheduled) -> tuple[int, ...]:
        """End an iteration."""
        # who lost a token has it again when its prompt is computed up to that token: nobody is told
        # of it twice
        again = self._regained(scheduled) if self._lost else set()
        ended = super().done(scheduled)
        self._ahead_tokens = None
        self._lost -= again
        if self._policy.ahead:
            self._unknown = set(scheduled.request[scheduled.samples].tolist()) | again
        return ended

    def _regained(self, scheduled: Scheduled) -> set[int]:
        tokens = dict(zip(scheduled.request.tolist(), scheduled.tokens.tolist(), strict=True))
        return {id_ for id_ in self._lost & tokens.keys() if self._jobs[id_].left == tokens[id_] + 1}

    def _join(self) -> None:
        """Let those who prefilled last into the running batch."""
        stay = [job for job in self._joining if job is not self._chunked and not self._known_ended(job)]
        if len(stay) < len(self._joining) or (stay and not self._batch):
            self._full = False
        self._batch += stay
        self._joining = []

    def _known_ended(self, job: Job) -> bool:
        return job.to_give == 0 and job not in self._leaving

    def _known(self, job: Job) -> int:
        """Output tokens that the scheduler knows of."""
        return job.given - (job.request.id in self._unknown or job.request.id in self._lost)

    def _to_prefill(self, job: Job, found: int) -> int:
        return job.request.prompt_tokens + job.given - (job.request.id in self._lost) - found

    def _asking(self, job: Job, tokens: int) -> Asking:
        known = self._known(job)
        return Asking(
            tokens=tokens, given=known, output_tokens=job.request.output_tokens, held=job.request.prompt_tokens + known
        )

    def _prefill(self) -> list[tuple[Job, int]]:
        """Chunks of this iteration: who is in the middle of a prompt first, then who waits, in order."""
        if (self._full or not self._waiting) and self._chunked is None:
            return []
        limits = self._limits
        seats = limits.max_sequences - len(self._batch)
        if seats <= 0 and self._chunked is not None:
            self._full = True
            return []
        admission = Admission(
            free=self._cache.free * limits.block_tokens,
            running=[self._asking(job, 0) for job in self._batch],
            ratio=self._ratio,
            input_tokens=self._policy.max_prefill_tokens,
            chunk=limits.max_batched_tokens if limits.chunked else None,
            page=limits.block_tokens,
            mixed=len(self._batch) if self._policy.mix else 0,
        )
        parts: list[tuple[Job, int]] = []
        if (job := self._chunked) is not None:
            count = admission.go_on(self._asking(job, self._to_prefill(job, job.computed)))
            if not self._grow(job, job.computed + count):
                return []
            parts.append((job, count))
            if count == self._to_prefill(job, job.computed):
                self._chunked = None
        self._admit(parts, admission, seats)
        return parts

    def _admit(self, parts: list[tuple[Job, int]], admission: Admission, seats: int) -> None:
        while self._waiting and not self._waiting[0].moved:
            if len(parts) >= seats:
                self._full = True
            if self._full:
                return
            job = self._waiting[0]
            found = self._found(job)
            left = self._to_prefill(job, found)
            count, verdict = admission.ask(self._asking(job, left), known_length=self._policy.ignore_eos)
            if count and not self._has_free(job, found + count, found):
                count, verdict = 0, Verdict.NO_ROOM
            if count:
                self._waiting.popleft()
                self._enter(job, found + count, found=found)
                parts.append((job, count))
                if count < left:
                    self._chunked = job
            if verdict is not Verdict.GO_ON:
                self._full = self._full or verdict is Verdict.NO_ROOM
                return

    def _decode(self) -> tuple[list[tuple[Job, int]], tuple[int, ...]]:
        """A token of all who run, after whose end is known is left out, and some are retracted where room is short."""
        before, leaving = len(self._batch), self._leaving
        self._batch = [
            job for job in self._batch if job.given < job.request.output_tokens or (leaving and job in leaving)
        ]
        preempted: tuple[int, ...] = ()
        if self._batch:
            if self._short(self._batch):
                preempted = self._retract()
            else:
                self._ratio = max(self._least_ratio, self._ratio - self._decay)
        if len(self._batch) < before or not self._batch:
            self._full = False
        block = self._limits.block_tokens
        for job in self._batch:
            if job.computed >= job.blocks * block:
                self._grow(job, job.computed + 1)
        return [(job, 1) for job in self._batch if job.to_give], preempted

    def _short(self, jobs: list[Job]) -> bool:
        """Whether a step of these wants more blocks than are free."""
        if len(jobs) <= self._cache.free:
            return False
        return sum(job.computed % self._limits.block_tokens == 0 for job in jobs) > self._cache.free

    def _retract(self) -> tuple[int, ...]:
        """Take the blocks of who has fewest output tokens until the others have room for a step."""
        ordered = sorted(self._batch, key=lambda job: (self._known(job), -job.request.prompt_tokens), reverse=True)
        gone: list[int] = []
        while len(ordered) > 1 and ordered[-1].to_give and (not gone or self._short(ordered)):
            job = ordered.pop()
            self._give_up(job)
            gone.append(job.request.id)
        self._batch = ordered
        given = sum(self._known(job) for job in ordered)
        wanted = sum(job.request.output_tokens for job in ordered)
        self._ratio = min(1.0, (given + RETRACT_STEPS * len(ordered)) / (wanted + 1))
        return tuple(gone)

    def _give_up(self, job: Job) -> None:
        """Let it wait behind all others; a token that is on its way is computed again."""
        self._preempt(job)
        self._waiting.remove(job)
        self._waiting.append(job)
        if job.request.id in self._unknown:
            self._lost.add(job.request.id)
            self._unknown.discard(job.request.id)

    def _let_in_moved(self) -> None:
        """Let in whose prompts other engines computed, where the cache has room: they take no prefill step."""
        while self._waiting and self._waiting[0].moved and self.running < self._limits.max_sequences:
            job = self._waiting[0]
            if not self._has_free(job, job.swapped + 1, 0):
                return
            self._waiting.popleft()
            self._enter(job, job.swapped)
            self._batch.append(job)

    @property
    def kv_blocks_spoken_for(self) -> int:
        """Blocks of running requests, and of the tokens that a decode worker keeps free for each."""
        if self._ahead_tokens is None:
            self._ahead_tokens = sum(min(job.to_give, RESERVED_DECODE_TOKENS) for job in self._running)
        return self._cache.used + self._limits.blocks_of(self._ahead_tokens)

    def blocks_to_enter(self, request: Request) -> int:
        """Blocks of its prompt, and of the tokens that are kept free for it."""
        ahead = min(request.output_tokens, RESERVED_DECODE_TOKENS)
        return self._limits.blocks_of(request.prompt_tokens + ahead)

    def quiet_steps(self) -> int:
        """How many of the next iterations just decode whoever runs."""
        if self._chunked is not None or self._joining or self._lost or len(self._batch) != len(self._running):
            return 0
        if self._waiting and self._waiting[0].moved:
            return 0
        self._blocked = self._full
        return super().quiet_steps()

    def advance(self, steps: int) -> None:
        """Take that many decode steps at once."""
        super().advance(steps)
        self._ahead_tokens = None
        self._ratio = max(self._least_ratio, self._ratio - steps * self._decay)
        if self._policy.ahead:
            self._unknown = {job.request.id for job in self._running}
