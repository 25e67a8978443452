"""SGLang."""

from __future__ import annotations

from moecast.sim.engines.engine import Engine

SGLANG = Engine(
    name="sglang",
    version="0.5.14",
    kernels="sglang",
    prompt_s=12e-3,
    request_s=92e-3,
    request_token_s=7e-6,
    request_on_s=(("h100_sxm", 146e-3), ("h200_sxm", 146e-3)),
    request_source="fit: of a prompt and its tokens as vLLM's, since rows do not tell them apart; request_s from the "
    "TTFT of six rows marked fit of serving.csv on B200 and B300 (55 to 139 ms above the forecast without, 92 in the "
    "median; two far slower ones left out) and of two on H200 (159 and 132 ms). With prefill on GPUs of its own the "
    "same",
    prompts_apart_s=115e-3,
    prompts_apart_source="fit: TTFT of six rows marked fit of serving.csv, of DeepSeek-R1 (prompts of 8,192 tokens: "
    "FP8 with 4 and 32 in flight on B200, 4 and 16 on GB200, NVFP4 with 64 on B200; of 1,024 NVFP4 with 512 on GB200) "
    "is off by +1, -40, +4, -9, -12 and +4 %, without it by -28 to -61 %; one with 4,096 that set nothing by -8. What "
    "takes it is not known: these workers launch kernel after kernel, without graphs",
)
