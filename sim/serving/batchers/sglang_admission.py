"""Who may start to prefill in one iteration of SGLang's: budgets of tokens, and room in the cache for what is to come.

After its `PrefillAdder` (0.5.9): a prompt enters where the free tokens hold it, its answer, and
what those who run are still expected to need; with answers of known length and no prefix cache,
where at no time to come more is held than there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

CLIP_NEW_TOKENS = 4096
"""Of a request's answer no more is ever asked of the cache in advance (SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION)."""
SPARE_TOKENS = 1
"""Kept free of each sequence in the walk over times to come."""


class Verdict(Enum):
    """What becomes of the next in the queue: let in and go on, no room in the cache, or the iteration is full."""

    GO_ON = "go on"
    NO_ROOM = "no room"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What admission knows of a request.

    Parameters
    ----------
    tokens
        Of its prompt (after a retraction, of what it was given, too), without those found in the
        cache.
    given, output_tokens
        Tokens of its answer that the scheduler knows of, and all of them.
    held
        Tokens of prompt and answer so far.
    """

    tokens: int
    given: int
    output_tokens: int
    held: int

    @property
    def to_come(self) -> int:
        """Of its answer, as far as admission looks."""
        return min(max(self.output_tokens - self.given, 0), CLIP_NEW_TOKENS)


@dataclass(slots=True, kw_only=True)
class Admission:
    """The budgets of one iteration; they shrink with each who is let in.

    Parameters
    ----------
    free
        Tokens of the cache that are free.
    running
        Those who run.
    ratio
        Part of the answers still to come that is kept free for them.
    input_tokens, chunk
        Prompt tokens of an iteration, and of its chunks; None: prompts are not cut.
    page
        Tokens of a block.
    mixed
        Decode tokens that ride along.
    """

    free: int
    running: Sequence[Asking]
    ratio: float
    input_tokens: int
    chunk: int | None
    page: int = 1
    mixed: int = 0
    let_in: int = 0
    _promised: float = 0.0
    _taken: int = 0
    _stays: list[tuple[int, int]] | None = field(default=None, repr=False)
    _entered: list[Asking] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        """Take off what runs."""
        self.input_tokens -= self.mixed
        if self.chunk is not None:
            self.chunk -= self.mixed
        self._promised = self.mixed + sum(
            min(asking.output_tokens - asking.given, CLIP_NEW_TOKENS) * self.ratio for asking in self.running
        )
        self._taken = self.mixed

    @property
    def room(self) -> float:
        """Free tokens, less those that are promised."""
        return self.free - self._promised

    def go_on(self, asking: Asking) -> int:
        """Tokens now of who is in the middle of a prompt."""
        assert self.chunk is not None
        most = min(self.chunk, int(self.room))
        if most <= 0:
            most = self.chunk
        count = min(asking.tokens, most)
        self._take(asking, count, ends=count == asking.tokens)
        return count

    def ask(self, asking: Asking, *, known_length: bool) -> tuple[int, Verdict]:
        """Tokens now of the next in the queue (0: it is not let in), and whether the one after may ask.

        `known_length`: answers do not end by themselves, and no prefix is kept.
        """
        stop = self._stop_known(asking) if known_length else self._stop(asking)
        if stop is not None:
            return 0, stop
        tokens = self._paged(asking.tokens)
        if self.chunk is None or tokens <= self.chunk:
            self._take(asking, asking.tokens, ends=True)
            return asking.tokens, self._verdict()
        count = self.chunk if known_length else self.chunk // self.page * self.page
        if count <= 0:
            return 0, Verdict.FULL
        self._take(asking, count, ends=False)
        return count, self._verdict()

    def _stop(self, asking: Asking) -> Verdict | None:
        if asking.tokens + asking.to_come >= self.room:
            return Verdict.NO_ROOM
        if self._paged(asking.tokens) >= self.input_tokens and self.let_in:
            return Verdict.FULL
        return None

    def _stop_known(self, asking: Asking) -> Verdict | None:
        """Walk over the ends of all who run: what is free then, with what they give back."""
        left = self.free - self._taken
        if self._paged(asking.tokens) > min(left, self.room):
            return Verdict.NO_ROOM
        if self._stays is None:
            others = [*self.running, *self._entered]
            self._stays = [_stay(one) for one in (asking, *others) if one.output_tokens > one.given]
            self._stays.sort(key=lambda stay: stay[0])
        elif (stay := _stay(asking))[0] > 0:
            # as the engine does it: who stays longest is put before the last one, not behind
            later = (at for at, other in enumerate(self._stays) if stay[0] <= other[0])
            self._stays.insert(next(later, max(0, len(self._stays) - 1)), stay)
        left -= self._paged(asking.tokens)
        for at, (to_come, held) in enumerate(self._stays):
            others_then = len(self._stays) - at
            if left - to_come * others_then <= SPARE_TOKENS * others_then:
                return Verdict.NO_ROOM
            left += held
        return None

    def _take(self, asking: Asking, count: int, *, ends: bool) -> None:
        tokens = self._paged(count)
        self._promised += tokens + (min(asking.output_tokens, CLIP_NEW_TOKENS) if ends else 0)
        self._taken += tokens
        self.input_tokens -= tokens
        if self.chunk is not None:
            self.chunk -= tokens
        self.let_in += 1
        self._entered.append(asking)

    def _verdict(self) -> Verdict:
        if self.room <= 0 or self.free - self._taken <= 0:
            return Verdict.NO_ROOM
        full = self.input_tokens <= 0 or (self.chunk is not None and self.chunk <= 0)
        return Verdict.FULL if full else Verdict.GO_ON

    def _paged(self, tokens: int) -> int:
        return -(-tokens // self.page) * self.page


def _stay(asking: Asking) -> tuple[int, int]:
    return asking.output_tokens - asking.given, asking.held
