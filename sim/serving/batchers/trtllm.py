"""TensorRT-LLM's in-flight batching: all who generate, then prompts in order, as far as tokens and blocks go.

After its `MicroBatchScheduler` and `CapacityScheduler`. Who may start is a capacity policy's to
say: `guaranteed_no_evict` starts a request where blocks for its prompt and its whole answer are
left by those that have started, so that nobody is ever paused; `max_utilization` where its prompt
fits, and pauses who came last when blocks run out. Prompts are not cut unless chunked context is
on. The next iteration is decided while one runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from moecast.errors import MoecastError
from moecast.sim.serving.batchers.batcher import Batcher, Limits
from moecast.sim.serving.batchers.mixed import MixedBatcher
from moecast.sim.serving.batchers.queued import Job
from moecast.sim.serving.request import Request

CAPACITY_POLICIES = ("guaranteed_no_evict", "max_utilization")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trtllm:
    """In-flight batching.

    Parameters
    ----------
    ahead
        The overlap scheduler, the default of the PyTorch backend.
    capacity
        `guaranteed_no_evict` or `max_utilization`.
    """

    name: str = "trtllm"
    ahead: bool = True
    capacity: str = "guaranteed_no_evict"

    def __post_init__(self) -> None:
        """Check the policy's name."""
        if self.capacity not in CAPACITY_POLICIES:
            rule = f"one of {', '.join(CAPACITY_POLICIES)}"
            raise MoecastError(rule, field="capacity", value=self.capacity)

    def limits(self, *, kv_blocks: int, block_tokens: int | None = None) -> Limits:
        """8,192 tokens, 2,048 requests, blocks of 32, whole prompts."""
        size = 32 if block_tokens is None else block_tokens
        return Limits(
            max_batched_tokens=8192, max_sequences=2048, kv_blocks=kv_blocks, block_tokens=size, chunked=False
        )

    def start(self, limits: Limits) -> Batcher:
        """Make an empty scheduler."""
        return TrtllmBatcher(limits, self)


class TrtllmBatcher(MixedBatcher):
    """One rank's in-flight batches: mixed ones, with the capacity policy's own idea of room."""

    def __init__(self, limits: Limits, policy: Trtllm) -> None:
        super().__init__(limits, late=policy.ahead)
        self._reserves = policy.capacity == "guaranteed_no_evict"
        self._whole_blocks = 0

    def _has_free(self, job: Job, tokens: int, found: int, *, leave: float = 0.0) -> bool:
        fits = super()._has_free(job, tokens, found, leave=leave)
        if not self._reserves:
            return fits
        return fits and self.kv_blocks_spoken_for + self._whole(job.request) <= self._limits.kv_blocks

    @property
    def kv_blocks_spoken_for(self) -> int:
        """Where nobody is paused, blocks of whole answers."""
        if not self._reserves:
            return super().kv_blocks_spoken_for
        return self._whole_blocks

    def _enter(self, job: Job, tokens: int, *, found: int = 0) -> None:
        self._whole_blocks += self._whole(job.request)
        super()._enter(job, tokens, found=found)

    def _leave(self, job: Job) -> None:
        self._whole_blocks -= self._whole(job.request)
        super()._leave(job)

    def blocks_to_enter(self, request: Request) -> int:
        """Blocks of its prompt, and where nobody is paused of its answer."""
        return self._whole(request) if self._reserves else super().blocks_to_enter(request)

    def _whole(self, request: Request) -> int:
        """Blocks of its prompt and whole answer."""
        return self._limits.blocks_of(request.tokens - 1)
