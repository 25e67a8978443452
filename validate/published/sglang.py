"""SGLang serving DeepSeek-V3 on nodes of eight H100 with InfiniBand, and on GB200."""

from __future__ import annotations

from dataclasses import replace

from moecast.validate.published.questions import WholeStep
from moecast.validate.published.row import Row, Source

_PREFILL = WholeStep(
    cluster="dgx-h100",
    nodes=4,
    phase="prefill",
    tokens=16_384,
    prompt=4096,
    routing="even",
    engine="sglang",
    schedule="two-batch",
)
_DECODE = replace(_PREFILL, nodes=9, phase="decode", tokens=256, prompt=0, context=2000, routing="uniform")
_NO_BATCH = "the batch was not recorded"

SOURCE = Source(
    name="SGLang",
    where="LMSYS blogs, deploying DeepSeek with large-scale expert parallelism on 96 H100, and on GB200 NVL72",
    conditions="DeepSeek-V3, DP attention, 8 x H100 nodes, two-batch overlap",
    rows=(
        Row(
            name="prefill, EP32, 16,384 tokens per GPU, prompts of 4,096, experts perfectly even",
            value=59_337,
            unit="tokens/s",
            use="check",
            question=_PREFILL,
        ),
        Row(
            name="the same as routed",
            value=50_302,
            unit="tokens/s",
            use="in kind",
            question=replace(_PREFILL, routing="skewed"),
            note="its routing was not recorded: the forecast skews experts as the shipped trace does, unbalanced",
        ),
        Row(
            name="decode, EP72, 256 requests per GPU, context 2,000",
            value=22_282,
            unit="tokens/s",
            use="check",
            question=_DECODE,
            note="its routing was not recorded: the forecast draws all experts alike",
        ),
        Row(name="GB200 NVL72, prefill, per GPU", value=18_471, unit="tokens/s", use="in kind", why_not=_NO_BATCH),
        Row(name="GB200 NVL72, decode, per GPU", value=9_087, unit="tokens/s", use="in kind", why_not=_NO_BATCH),
    ),
)
