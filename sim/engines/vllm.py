"""vLLM."""

from __future__ import annotations

from moecast.sim.engines.engine import Engine

VLLM = Engine(name="vllm", version="0.24.0", kernels="vllm")
