"""TensorRT-LLM."""

from __future__ import annotations

from moecast.sim.engines.engine import Engine

# Of FP8 by blocks nothing is quantised before the exchange, of NVFP4 it is (its fused_moe_cutlass.py and
# fused_moe_deepgemm.py).
TRTLLM = Engine(
    name="trtllm", version="1.3.0rc20", kernels="trtllm", attention_kernels=2, sends_bf16_for=("fp8",)
)  # fmt: skip
