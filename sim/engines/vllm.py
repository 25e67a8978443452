"""vLLM."""

from __future__ import annotations

from moecast.sim.engines.engine import Engine

VLLM = Engine(
    name="vllm",
    version="0.24.0",
    kernels="vllm",
    step_s=0.89e-3,
    step_source="fit: the median of what five rows marked fit of serving.csv take beside their kernels (vLLM 0.18 and "
    "0.19 without speculative decoding, MiniMax-M2.5 on H200, B200 and B300: 0.32 to 0.98 ms)",
    prompt_step_s=24e-3,
    request_source="fit: the mean TTFT of five rows marked fit of serving.csv with 4 requests in flight is above the "
    "forecast without it by 24 ms in the median (16 to 66); the time per token of three such rows with 512 in flight "
    "wants it in iterations",
)
