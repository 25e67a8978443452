"""SGLang serving DeepSeek-V3 on nodes of eight H100 with InfiniBand."""

from __future__ import annotations

from moecast.validate.published.questions import WholeStep
from moecast.validate.published.row import Row, Source

SOURCE = Source(
    name="SGLang",
    where="LMSYS blog, deploying DeepSeek with large-scale expert parallelism on 96 H100",
    conditions="DeepSeek-V3, DP attention, 8 x H100 nodes; it overlaps two half batches, the simulator does not yet",
    rows=(
        Row(
            name="prefill, EP32, 16,384 tokens per GPU, prompts of 4,096",
            value=50_302,
            unit="tokens/s",
            use="check",
            question=WholeStep(cluster="dgx-h100", nodes=4, phase="prefill", tokens=16_384, prompt=4096),
        ),
        Row(
            name="decode, EP72, 256 requests per GPU, context 2,000",
            value=22_282,
            unit="tokens/s",
            use="check",
            question=WholeStep(cluster="dgx-h100", nodes=9, phase="decode", tokens=256, context=2000),
        ),
    ),
)
