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
    "median; two far slower ones left out) and of two on H200 (159 and 132 ms). With prefill on GPUs of its own: "
    "as of prompts_apart",
    prompts_apart_s=115e-3,
    prompts_apart_source="fit, with request_apart_s: TTFT of five rows marked fit of serving.csv "
    "with prompts of 8,192 tokens, of DeepSeek-R1 (FP8 with 4 and 32 in flight on B200, 4 and 16 "
    "on GB200, NVFP4 with 64 on B200) is off by 0, -39, +1, -14 and 0 %; with kernels' own time "
    "and 262 ms it was 0, -52, +3, -26 and -32 %. What takes it is not known",
)
