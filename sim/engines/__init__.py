"""Serving and training engines: whose kernels run, and what each of them does beside kernels."""

from __future__ import annotations

from moecast.errors import MoecastError
from moecast.sim.engines.engine import Engine
from moecast.sim.engines.megatron import MEGATRON
from moecast.sim.engines.neutral import NEUTRAL
from moecast.sim.engines.sglang import SGLANG
from moecast.sim.engines.trtllm import TRTLLM
from moecast.sim.engines.vllm import VLLM

ENGINES: tuple[Engine, ...] = (NEUTRAL, TRTLLM, SGLANG, VLLM, MEGATRON)

__all__ = ["ENGINES", "MEGATRON", "NEUTRAL", "SGLANG", "TRTLLM", "VLLM", "Engine", "find_engine"]


def find_engine(name: str) -> Engine:
    """The engine of a name.

    Raises
    ------
    MoecastError
        There is none.
    """
    for engine in ENGINES:
        if engine.name == name:
            return engine
    rule = f"one of {', '.join(engine.name for engine in ENGINES)}"
    raise MoecastError(rule, field="engine", value=name)
