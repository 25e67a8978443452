"""How many tokens' keys fit into a rank's memory beside weights and activations.

Axes: G DP rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moecast.errors import MoecastError
from moecast.sim.memory import memory_by_part, usable_bytes
from moecast.sim.step import Step
from moecast.sim.workload import Workload
from moecast.units import format_bytes

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan
    from moecast.topology import Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCapacity:
    """A rank's cache.

    Parameters
    ----------
    free_bytes
        Left on the GPU that holds most.
    sequence_bytes
        What a sequence of `tokens` tokens takes there, of linear layers its state included.
    tokens
        The length that this is said of.
    """

    free_bytes: int
    sequence_bytes: int
    tokens: int

    @property
    def token_bytes(self) -> float:
        """Bytes of a token of such a sequence."""
        return self.sequence_bytes / self.tokens

    def blocks(self, block_tokens: int) -> int:
        """Whole blocks that fit."""
        return int(self.free_bytes / (self.token_bytes * block_tokens))


def kv_capacity(
    model: ModelShape, plan: Plan, hardware: Hardware, *, tokens: int, batched_tokens: int, fraction: float
) -> KvCapacity:
    """Find what the memory of a plan's GPUs leaves for keys and values.

    Parameters
    ----------
    tokens
        A typical length of sequences: windowed and linear layers take less per token of long ones.
    batched_tokens
        The most tokens of an iteration on a rank, which say how large activations get.
    fraction
        Of the GPU's memory that the engine takes.

    Raises
    ------
    MoecastError
        Weights and activations alone do not fit.
    """
    one = _decode_step(plan.dp, tokens)
    held = memory_by_part(model, plan, Workload(phase="decode", tokens_per_rank=1, reuse=True), hardware, steps=[one])
    full = _prefill_step(plan.dp, batched_tokens)
    work = Workload(phase="prefill", tokens_per_rank=batched_tokens, reuse=True)
    activations = memory_by_part(model, plan, work, hardware, steps=[full])["activations"]
    usable = usable_bytes(hardware, fraction)
    free = usable - held["weights"] - held["slots"] - activations
    if free <= 0:
        taken = format_bytes(held["weights"] + held["slots"] + activations)
        rule = (
            f"weights and activations take {taken} of the {format_bytes(usable)} that the engine may: no cache is left"
        )
        raise MoecastError(rule, field="memory_fraction", value=fraction)
    return KvCapacity(free_bytes=free, sequence_bytes=max(held["kv"], 1), tokens=tokens)


def sequence_bytes(model: ModelShape, plan: Plan, hardware: Hardware, *, tokens: int) -> int:
    """Bytes that a sequence of so many tokens takes on the GPU of its rank that holds most."""
    work = Workload(phase="decode", tokens_per_rank=1, reuse=True)
    return max(1, memory_by_part(model, plan, work, hardware, steps=[_decode_step(plan.dp, tokens)])["kv"])


def _decode_step(ranks: int, context: int) -> Step:
    return Step(
        token_T=np.zeros(ranks, np.int64),
        source_T=np.arange(ranks, dtype=np.int32),
        context_T=np.full(ranks, context, np.int64),
        phase="decode",
    )


def _prefill_step(ranks: int, tokens: int) -> Step:
    last_T = np.zeros(ranks * tokens, bool)
    last_T[tokens - 1 :: tokens] = True
    return Step(
        token_T=np.zeros(ranks * tokens, np.int64),
        source_T=np.repeat(np.arange(ranks, dtype=np.int32), tokens),
        context_T=np.tile(np.arange(1, tokens + 1), ranks),
        phase="prefill",
        last_T=last_T,
    )
