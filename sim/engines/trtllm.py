"""TensorRT-LLM."""

from __future__ import annotations

from moecast.sim.engines.engine import Engine

# Of FP8 by blocks nothing is quantised before the exchange, of NVFP4 it is, whether tokens are
# gathered or sent (its fused_moe_cutlass.py, fused_moe_wide_ep.py and fused_moe_deepgemm.py).
TRTLLM = Engine(
    name="trtllm",
    version="1.3.0rc20",
    kernels="trtllm",
    attention_kernels=2,
    sends=(("fp8", "bf16"), ("nvfp4", "nvfp4")),
    request_s=105e-3,
    request_token_s=7e-6,
    request_on_s=(("h100_sxm", 187e-3), ("h200_sxm", 187e-3)),
    request_apart_s=82e-3,
    request_apart_on_s=(("h100_sxm", 350e-3), ("h200_sxm", 350e-3)),
    request_source="fit: TTFT of two rows marked fit of serving.csv on B200 (4 and 128 in flight: 126 and 83 ms above "
    "the forecast without; with a time of each prompt in iterations they would be further apart, so that there is "
    "none) and of one on H200 (187 ms); tokens as vLLM's. With prefill on GPUs of its own the one such row with "
    "4 in flight is 82 ms above the forecast without, on GB200, and one on H200 with 36 in flight 350 ms",
)
