"""Past-Future's memory-aware admission: who waits enters where the cache will hold all at the worst moment to come.

*Past*: how long an answer will be is drawn from the answers that ended lately, those longer than
what it has by now. *Future*: of who runs, whoever has least left leaves first and gives its blocks
back; the peak of what all hold until then is known from lengths alone, and admission keeps it
within the cache. Batches are mixed otherwise.

After "Past-Future Scheduler for LLM Serving under SLA Guarantees" (arXiv 2507.10150) and the
estimate of LightLLM's request queues, which implement it; written anew. Neither was run beside
this.

Axes: R running request, P answer of the past.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.serving.batchers.batcher import Batcher, Limits
from moecast.sim.serving.batchers.mixed import Mixed, MixedBatcher
from moecast.sim.serving.batchers.queued import Job

Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PastFuture:
    """Admission by the peak of memory to come.

    Parameters
    ----------
    window
        Answers of the past that are remembered; 0: none, so that every answer is taken to be
        `assumed_output` long, which is the conservative scheduler of the paper.
    assumed_output
        Tokens of an answer as long as nothing like it is in the past: users' `max_tokens`.
    reserve
        Part of the cache that the peak leaves free.
    draws, seed
        How often lengths are drawn: the worst peak counts.

    Raises
    ------
    MoecastError
        A number out of its range.
    """

    name: str = "past-future"
    ahead: bool = False
    window: int = 1000
    assumed_output: int = 2048
    reserve: float = 0.03
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, least in (("window", 0), ("assumed_output", 1), ("draws", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise MoecastError(f"at least {least}", field=name, value=getattr(self, name))
        if not 0 <= self.reserve < 1:
            rule = "a part of the cache, from 0 to less than 1"
            raise MoecastError(rule, field="reserve", value=self.reserve)

    def limits(self, *, kv_blocks: int, block_tokens: int | None = None) -> Limits:
        """Those of mixed batching."""
        return Mixed().limits(kv_blocks=kv_blocks, block_tokens=block_tokens)

    def start(self, limits: Limits) -> Batcher:
        """Make an empty scheduler."""
        return PastFutureBatcher(limits, self)


def peak_tokens(held_R: Int, left_R: Int) -> int:
    """The most tokens that requests hold at one time until all are at an end.

    Everybody grows by a token an iteration, and leaves after `left_R` of them: when the i-th from
    the last leaves, the i who are still there hold what they do now and as many tokens more each.
    """
    order = np.argsort(-left_R, kind="stable")
    counts = np.arange(1, len(order) + 1)
    return int((np.cumsum(held_R[order]) + counts * left_R[order]).max(initial=0))


class PastFutureBatcher(MixedBatcher):
    """One rank's mixed batches under the peak's limit."""

    def __init__(self, limits: Limits, policy: PastFuture) -> None:
        super().__init__(limits, late=policy.ahead)
        self._policy = policy
        self._past: deque[int] = deque(maxlen=policy.window)
        self._sorted_P: Int = np.empty(0, np.int64)
        self._rng = np.random.default_rng(policy.seed)
        self._room = (1 - policy.reserve) * limits.kv_blocks * limits.block_tokens

    def _has_free(self, job: Job, tokens: int, found: int, *, leave: float = 0.0) -> bool:
        fits = super()._has_free(job, tokens, found, leave=leave)
        # an empty cache takes anybody: no estimate may stop the engine for good
        return fits and (not self._running or self._peak([*self._running, job]) <= self._room)

    def _peak(self, jobs: Sequence[Job]) -> int:
        """The peak that these are expected to reach, in tokens of whole blocks."""
        given_R = np.array([job.given for job in jobs])
        held_R = given_R + [job.request.prompt_tokens for job in jobs]
        # a block that is opened is held whole: half of one each, in the mean
        held_R += (self._limits.block_tokens - 1) // 2
        return max(peak_tokens(held_R, self._drawn(given_R) - given_R) for _ in range(self._policy.draws))

    def _drawn(self, given_R: Int) -> Int:
        """Lengths of answers that have so many tokens by now, drawn from longer ones of the past."""
        past_P = self._sorted_P
        first_R = np.searchsorted(past_P, given_R, side="right")
        longer_R = len(past_P) - first_R
        unknown_R = np.maximum(self._policy.assumed_output, given_R + 1)
        if not len(past_P):
            return unknown_R
        at_R = first_R + (self._rng.random(len(given_R)) * longer_R).astype(np.int64)
        return np.where(longer_R > 0, past_P[np.minimum(at_R, len(past_P) - 1)], unknown_R)

    def _release(self, jobs: list[Job]) -> None:
        if jobs and self._policy.window:
            self._past.extend(job.given for job in jobs)
            self._sorted_P = np.sort(np.array(self._past))
        super()._release(jobs)

    def quiet_steps(self) -> int:
        """None while somebody waits: the estimate changes with every token."""
        return 0 if self._waiting else super().quiet_steps()
