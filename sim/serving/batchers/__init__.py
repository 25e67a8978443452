"""How engines batch requests, one file each."""

from __future__ import annotations

from moecast.errors import MoecastError
from moecast.sim.serving.batchers.batcher import Batcher, Limits, Policy, Scheduled
from moecast.sim.serving.batchers.batchllm import BatchLlm
from moecast.sim.serving.batchers.mixed import Mixed
from moecast.sim.serving.batchers.past_future import PastFuture
from moecast.sim.serving.batchers.sglang import Sglang
from moecast.sim.serving.batchers.static import Static
from moecast.sim.serving.batchers.trtllm import Trtllm
from moecast.sim.serving.batchers.vllm import VLLM_0_19, Vllm

BATCHERS: tuple[Policy, ...] = (Mixed(), Vllm(), VLLM_0_19, Sglang(), Trtllm(), Static(), PastFuture(), BatchLlm())

__all__ = ["BATCHERS", "Batcher", "Limits", "Policy", "Scheduled", "find_batcher"]


def find_batcher(name: str) -> Policy:
    """The policy of an engine's name.

    Raises
    ------
    MoecastError
        There is none.
    """
    for policy in BATCHERS:
        if policy.name == name:
            return policy
    rule = f"one of {', '.join(policy.name for policy in BATCHERS)}"
    raise MoecastError(rule, field="batcher", value=name)
