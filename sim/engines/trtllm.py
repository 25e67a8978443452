"""TensorRT-LLM."""

from __future__ import annotations

from moecast.sim.engines.engine import Engine

# Of FP8 by blocks nothing is quantised before the exchange, of NVFP4 it is (its fused_moe_cutlass.py and
# fused_moe_deepgemm.py).
TRTLLM = Engine(
    name="trtllm",
    version="1.3.0rc20",
    kernels="trtllm",
    attention_kernels=2,
    sends_bf16_for=("fp8",),
    prompt_step_s=24e-3,
    request_s=137e-3,
    request_apart_s=62e-3,
    request_source="fit: the mean TTFT of two rows marked fit of serving.csv with 4 requests in flight is above the "
    "forecast without them by 161 ms in the mean (132 and 191); of these an iteration takes what it takes in vLLM, "
    "since the rows do not tell the two apart. With prefill on GPUs of its own the one such row is 75 ms below the "
    "forecast with these two (another server stands before the engines there)",
)
