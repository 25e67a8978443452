"""TensorRT-LLM."""

from __future__ import annotations

from moecast.sim.engines.engine import Engine

TRTLLM = Engine(name="trtllm", version="1.3.0rc20", kernels="trtllm", attention_kernels=2)
