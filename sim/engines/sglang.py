"""SGLang."""

from __future__ import annotations

from moecast.sim.engines.engine import Engine

SGLANG = Engine(
    name="sglang",
    version="0.5.14",
    kernels="sglang",
    prompt_step_s=24e-3,
    request_s=127e-3,
    request_apart_s=301e-3,
    request_source="fit: the mean TTFT of five rows marked fit of serving.csv with 4 requests in flight is above the "
    "forecast without them by 151 ms in the median (119 to 181); of these an iteration takes what it takes in vLLM, "
    "since the rows do not tell the two apart. With prefill on GPUs of its own two such rows are 159 and 188 ms above "
    "the forecast with these two",
)
