"""Perplexity's pplx-kernels on H100."""

from __future__ import annotations

from moecast.validate.published.questions import TokenExchange
from moecast.validate.published.row import Row, Source

SOURCE = Source(
    name="pplx-kernels",
    where="perplexityai/pplx-kernels, README",
    conditions="H100, NVLink 450 GB/s; hidden 7168, top-8 of 256 experts, FP8 dispatch, bf16 combine",
    rows=(
        Row(
            name="dispatch, 8 ranks, 128 tokens per rank",
            value=83.6,
            unit="us",
            use="check",
            question=TokenExchange(cluster="dgx-h100", ranks=8, tokens=128, mode="per_choice", exchange="dispatch"),
        ),
        Row(
            name="combine, 8 ranks, 128 tokens per rank",
            value=102.3,
            unit="us",
            use="check",
            question=TokenExchange(cluster="dgx-h100", ranks=8, tokens=128, mode="per_choice", exchange="combine"),
        ),
        Row(
            name="NCCL all-to-all, 8 ranks, one token per rank",
            value=24.4,
            unit="us",
            use="fit",
            question=TokenExchange(cluster="dgx-h100", ranks=8, tokens=1, mode="nccl", exchange="dispatch"),
        ),
        Row(
            name="NCCL all-to-all, 128 ranks, one token per rank",
            value=132,
            unit="us",
            use="check",
            question=TokenExchange(cluster="dgx-h100", nodes=16, ranks=128, tokens=1, mode="nccl", exchange="dispatch"),
        ),
    ),
)
