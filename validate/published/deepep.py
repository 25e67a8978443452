"""DeepSeek's DeepEP on H800: the low-latency kernels and the normal ones."""

from __future__ import annotations

from moecast.validate.published.questions import ExchangeName, TokenExchange
from moecast.validate.published.row import Row, Source, Use


def _low_latency(ranks: int, dispatch_us: float, combine_us: float, use: Use, *, only_nics: bool) -> tuple[Row, ...]:
    way = "NICs only" if only_nics else "NVLink inside the node"
    values: dict[ExchangeName, float] = {"dispatch": dispatch_us, "combine": combine_us}
    return tuple(
        Row(
            name=f"low-latency {exchange}, {ranks} ranks, {way}",
            value=value,
            unit="us",
            use=use,
            question=TokenExchange(
                cluster="h800-node", nodes=max(1, ranks // 8), ranks=ranks, tokens=128, mode="per_choice",
                exchange=exchange, only_nics=only_nics,
            ),
        )
        for exchange, value in values.items()
    )  # fmt: skip


def _normal(ranks: int, dispatch_GBps: float, combine_GBps: float, use: Use) -> tuple[Row, ...]:
    values: dict[ExchangeName, float] = {"dispatch": dispatch_GBps, "combine": combine_GBps}
    return tuple(
        Row(
            name=f"normal {exchange}, {ranks} ranks",
            value=value,
            unit="GB/s",
            use=use,
            question=TokenExchange(
                cluster="h800-node", nodes=ranks // 8, ranks=ranks, tokens=4096, mode="per_domain", exchange=exchange,
                unit="GB/s",
            ),
        )
        for exchange, value in values.items()
    )  # fmt: skip


SOURCE = Source(
    name="DeepEP",
    where="deepseek-ai/DeepEP, README at commits 77bb07a (NICs only) and de8cfca (NVLink inside the node)",
    conditions="H800, one 400 Gb/s ConnectX-7 per GPU; hidden 7168, top-8 of 256 experts, FP8 dispatch, bf16 combine; "
    "low-latency 128 tokens per rank, normal 4096, the routing of its tests drawn anew",
    rows=(
        *_low_latency(8, 163, 318, "fit", only_nics=True),
        *_low_latency(16, 173, 329, "check", only_nics=True),
        *_low_latency(64, 186, 353, "check", only_nics=True),
        *_low_latency(256, 194, 360, "fit", only_nics=True),
        *_low_latency(8, 77, 114, "fit", only_nics=False),
        *_low_latency(64, 173, 314, "check", only_nics=False),
        *_normal(8, 153, 158, "fit"),
        *_normal(32, 58, 57, "check"),
    ),
)
