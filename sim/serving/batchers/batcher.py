"""What a batcher is: it decides which tokens of which requests one engine iteration computes.

One batcher stands for the scheduler of one attention-DP rank. It knows requests, tokens and KV
blocks, and no time: the event loop adds requests as they come, asks for the next iteration, and
tells when that is done.

Axes: every array of `Scheduled` has one entry for each request in the iteration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.serving.request import Request

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

MOST = 1 << 40


def _ints() -> Int:
    return np.empty(0, np.int64)


def _bools() -> Bool:
    return np.empty(0, np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scheduled:
    """What one engine iteration of one attention-DP rank computes, request by request.

    Parameters
    ----------
    request
        Ids, in the engine's order.
    tokens
        Tokens of each that are computed now: a chunk of its prompt, or the last token that it was
        given (1).
    context
        Tokens of each whose keys are in the cache before (computed, or found in the prefix cache).
    finishes_prompt
        Whether the iteration ends its prefill. After a preemption by recompute, prefill goes over
        the prompt and all tokens given so far.
    samples
        Whether it is given an output token at the end of the iteration: those that finish prefill
        or decode.
    preempted
        Ids of running requests that gave up their blocks in this call.
    swapped_blocks
        KV blocks that are copied between the GPU and its host before the iteration, either way.
    wasted, wasted_context
        Tokens that are computed for nobody, since their requests were found to be at an end too
        late (overlapped scheduling), and their contexts in all.
    """

    request: Int = field(default_factory=_ints)
    tokens: Int = field(default_factory=_ints)
    context: Int = field(default_factory=_ints)
    finishes_prompt: Bool = field(default_factory=_bools)
    samples: Bool = field(default_factory=_bools)
    preempted: tuple[int, ...] = ()
    swapped_blocks: int = 0
    wasted: int = 0
    wasted_context: int = 0

    def __len__(self) -> int:
        """Requests in the iteration; with none of them the rank idles."""
        return len(self.request)

    @property
    def decodes(self) -> Bool:
        """Which requests are past their prefill."""
        return self.samples & ~self.finishes_prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one rank's engine may have in one iteration and in its cache.

    Parameters
    ----------
    max_batched_tokens
        The token budget of an iteration (vLLM's `max_num_batched_tokens`, SGLang's
        `chunked_prefill_size`, TensorRT-LLM's `max_num_tokens`).
    max_sequences
        Requests that run at a time (`max_num_seqs`, `max_running_requests`, `max_batch_size`).
    kv_blocks, block_tokens
        Blocks of the KV cache, and tokens in each.
    watermark
        Part of the blocks that admission leaves free.
    chunked
        Prompts may be cut; else an iteration takes a prompt whole or not at all.
    prefix_cache
        Full blocks stay findable by their content until they are needed for something else.

    Raises
    ------
    MoecastError
        A value out of its range.
    """

    max_batched_tokens: int
    max_sequences: int
    kv_blocks: int
    block_tokens: int = 16
    watermark: float = 0.0
    chunked: bool = True
    prefix_cache: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("max_batched_tokens", "max_sequences", "kv_blocks", "block_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
                raise MoecastError("a whole number of at least 1", field=name, value=value)
        if not 0 <= self.watermark < 1:
            rule = "a part of the blocks, from 0 to less than 1"
            raise MoecastError(rule, field="watermark", value=self.watermark)

    def blocks_of(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self.block_tokens)

    def check_holds(self, request: Request) -> None:
        """Fail where the cache cannot hold a request even alone.

        Raises
        ------
        MoecastError
            Says how many tokens it holds, and how many the request needs.
        """
        needed = request.tokens - 1
        if self.blocks_of(needed) > self.kv_blocks:
            held = self.kv_blocks * self.block_tokens
            rule = f"the KV cache of a rank holds {held} tokens, request {request.id} alone needs {needed}"
            raise MoecastError(rule, field="kv_blocks", value=self.kv_blocks)


class Batcher(Protocol):
    """The scheduler of one rank, in the state that it is in."""

    @property
    def waiting(self) -> int:
        """Requests that hold no blocks and wait to be admitted, preempted ones too."""
        ...

    @property
    def running(self) -> int:
        """Requests that hold blocks."""
        ...

    @property
    def kv_blocks_used(self) -> int:
        """Blocks of running requests; those that are only kept for their content are free."""
        ...

    def add(self, request: Request) -> None:
        """Let a request come.

        Raises
        ------
        MoecastError
            The cache cannot hold it even alone.
        """
        ...

    def add_prefilled(self, request: Request) -> None:
        """Let a request come whose prompt another engine computed: its keys and its first token come with it.

        Raises
        ------
        MoecastError
            The cache cannot hold it even alone.
        """
        ...

    @property
    def kv_blocks_spoken_for(self) -> int:
        """Blocks of running requests, and those that are kept free for what they are still to be given."""
        ...

    def blocks_to_enter(self, request: Request) -> int:
        """Blocks that must be free beside those before a request is let in whose prompt was computed elsewhere."""
        ...

    def schedule(self) -> Scheduled:
        """Decide the next iteration: blocks are taken, counts of computed tokens are not yet advanced."""
        ...

    def done(self, scheduled: Scheduled) -> tuple[int, ...]:
        """End an iteration: tokens are computed and given; the ids of requests that have all theirs, which leave."""
        ...

    def quiet_steps(self) -> int:
        """How many of the next iterations at least decode just the running requests, if nobody comes.

        In none of them a request is admitted, preempted, or given its last token, and each has the
        same requests with one token each. 0 where that is not known: the event loop then asks step
        by step.
        """
        ...

    def advance(self, steps: int) -> None:
        """Take that many iterations, at most `quiet_steps()`, at once: as `schedule` and `done` in turn would."""
        ...


class Policy(Protocol):
    """How an engine batches, with its options: what `BATCHERS` lists."""

    @property
    def name(self) -> str:
        """The engine's name, as `--engine` says it, or the policy's own."""
        ...

    @property
    def ahead(self) -> bool:
        """Whether an iteration is decided while the one before runs: who comes meanwhile waits for one more."""
        ...

    def limits(self, *, kv_blocks: int, block_tokens: int | None = None) -> Limits:
        """Its engine's defaults, over a cache of so many blocks."""
        ...

    def start(self, limits: Limits) -> Batcher:
        """Make an empty scheduler."""
        ...
