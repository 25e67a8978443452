"""vLLM's batching: its options, and its defaults.

What it decides by them is in `vllm_scheduler.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from moecast.errors import MoecastError
from moecast.sim.serving.batchers.batcher import MOST, Batcher, Limits
from moecast.sim.serving.batchers.vllm_scheduler import VllmBatcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm:
    """How vLLM batches (V1).

    Parameters
    ----------
    ahead
        Async scheduling, the default: who is at an end keeps its seat and its blocks for one more
        iteration.
    long_prefill_token_threshold
        Most tokens of one prompt in an iteration, while there is another request; 0: no such limit.
    long_prefill_token_threshold_adaptive
        That limit is never below the budget's even share among the requests that are there.
    scheduler_reserve_full_isl
        Who is admitted must find room for all of its known tokens, not for the first chunk alone.
    cuts_alone
        The limit also cuts the prompt of the only request there is (as in 0.19).
    blanks_first
        See `BlockPool`.

    Raises
    ------
    MoecastError
        A limit below 0.
    """

    name: str = "vllm"
    ahead: bool = True
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    scheduler_reserve_full_isl: bool = True
    cuts_alone: bool = False
    blanks_first: bool = True

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.long_prefill_token_threshold < 0:
            name = "long_prefill_token_threshold"
            rule = "0, for none, or more"
            raise MoecastError(rule, field=name, value=self.long_prefill_token_threshold)

    def limits(self, *, kv_blocks: int, block_tokens: int | None = None) -> Limits:
        """What `vllm serve` takes on an H100 or H200: 8,192 tokens, 1,024 requests, blocks of 16, prefixes cached."""
        return Limits(
            max_batched_tokens=8192,
            max_sequences=1024,
            kv_blocks=kv_blocks,
            block_tokens=16 if block_tokens is None else block_tokens,
            prefix_cache=True,
        )

    def start(self, limits: Limits) -> Batcher:
        """Make an empty scheduler."""
        return VllmBatcher(limits, self)

    def most_of_prompt(self, budget: int, requests: int) -> int:
        """Tokens of one prompt that an iteration takes at most, with so many requests there."""
        limit = self.long_prefill_token_threshold
        if not limit or (requests <= 1 and not self.cuts_alone):
            return MOST
        return max(limit, budget // max(requests, 1)) if self.long_prefill_token_threshold_adaptive else limit


VLLM_0_19 = Vllm(name="vllm-0.19", cuts_alone=True, blanks_first=False)
"""As of April 2026, the version of most public results."""
