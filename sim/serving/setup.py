"""How requests are served, beside the question's plan: the batcher and its limits, dispatch, and iterations' cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moecast.errors import MoecastError
from moecast.sim.serving.batchers import Limits, Policy, find_batcher
from moecast.sim.serving.dispatch import DISPATCH_RULES

COSTS = ("surrogate", "exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Batcher, limits, dispatch and cost.

    Parameters
    ----------
    batcher
        A policy, or the name of one; None: that of the question's engine.
    max_batched_tokens, max_sequences, kv_blocks, block_tokens, watermark, chunked, prefix_cache
        As of `Limits`; None: the policy's own, and of `kv_blocks` what the memory leaves.
    dp_dispatch
        How requests are dealt to attention-DP ranks: one of `DISPATCH_RULES`.
    receive_every
        Who has come is looked for after so many iterations without prompts (SGLang's
        `scheduler_recv_interval`); after one with prompts at once.
    think_s
        Closed loop: from a user's answer to the next request.
    cost
        `surrogate`, or `exact`: every iteration is simulated.
    draws
        Surrogate: simulated steps at each point of its grid.
    tries
        Surrogate: iterations that are simulated, too, to measure its error.
    overload
        Random arrivals faster than can be served are run, instead of refused.

    Raises
    ------
    MoecastError
        A value out of its range.
    """

    batcher: str | Policy | None = None
    max_batched_tokens: int | None = None
    max_sequences: int | None = None
    kv_blocks: int | None = None
    block_tokens: int | None = None
    watermark: float | None = None
    chunked: bool | None = None
    prefix_cache: bool | None = None
    dp_dispatch: str = "round_robin"
    receive_every: int = 1
    think_s: float = 0.0
    cost: str = "surrogate"
    draws: int = 1
    tries: int = 8
    overload: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.cost not in COSTS:
            raise MoecastError(f"one of {', '.join(COSTS)}", field="cost", value=self.cost)
        if self.dp_dispatch not in DISPATCH_RULES:
            rule = f"one of {', '.join(DISPATCH_RULES)}"
            raise MoecastError(rule, field="dp_dispatch", value=self.dp_dispatch)
        if not 0 <= self.think_s < float("inf"):
            raise MoecastError("finite seconds, not negative", field="think_s", value=self.think_s)
        for name, least in (("receive_every", 1), ("draws", 1), ("tries", 0)):
            if getattr(self, name) < least:
                raise MoecastError(f"at least {least}", field=name, value=getattr(self, name))

    def policy(self, engine: str) -> Policy:
        """The batcher's policy, for an engine.

        Raises
        ------
        MoecastError
            There is none of this name.
        """
        if self.batcher is None or isinstance(self.batcher, str):
            return find_batcher(self.batcher or engine)
        return self.batcher

    def limits(self, policy: Policy, *, kv_blocks: int) -> Limits:
        """The policy's limits, with what was given in their place.

        Raises
        ------
        MoecastError
            A limit out of its range.
        """
        names = ("max_batched_tokens", "max_sequences", "watermark", "chunked", "prefix_cache")
        given: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(policy.limits(kv_blocks=kv_blocks, block_tokens=self.block_tokens), **given)
