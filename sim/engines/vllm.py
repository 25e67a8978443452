"""vLLM."""

from __future__ import annotations

from moecast.sim.engines.engine import Engine

VLLM = Engine(
    name="vllm",
    version="0.24.0",
    kernels="vllm",
    step_s=0.89e-3,
    step_source="fit: the median of what five rows marked fit of serving.csv take beside their "
    "kernels (vLLM 0.18 and 0.19 without speculative decoding, MiniMax-M2.5 on H200, B200 and "
    "B300: 0.32 to 0.98 ms)",
    prompt_s=12e-3,
    request_token_s=7e-6,
    request_source="fit: TTFT of nine rows marked fit of serving.csv (vLLM 0.18 and 0.19). Of "
    "three with 512 in flight and of three with 4 and prompts of 920 tokens it is what it is with "
    "12 ms a prompt in iterations (off by -7 to +5 %, and +3 to -6 ms); the one with 4 and 7,372 "
    "tokens wants 50 ms more: 7 us a token, as long as making tokens of text takes on a core. "
    "Nothing is left for a request_s; the row on H200 wants 45 ms",
)
