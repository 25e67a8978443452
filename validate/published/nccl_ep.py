"""NVIDIA's NCCL EP on H100: low-latency dispatch and combine, bf16 both ways."""

from __future__ import annotations

from moecast.validate.published.questions import ExchangeName, TokenExchange
from moecast.validate.published.row import Row, Source, Use


def _rows(ranks: int, dispatch_GBps: float, combine_GBps: float, use: Use) -> tuple[Row, ...]:
    values: dict[ExchangeName, float] = {"dispatch": dispatch_GBps, "combine": combine_GBps}
    return tuple(
        Row(
            name=f"low-latency {exchange}, {ranks} ranks",
            value=value,
            unit="GB/s",
            use=use,
            question=TokenExchange(
                cluster="dgx-h100",
                nodes=ranks // 8,
                ranks=ranks,
                tokens=128,
                mode="per_choice",
                exchange=exchange,
                dispatch_type="bf16",
                unit="GB/s",
            ),
        )
        for exchange, value in values.items()
    )


SOURCE = Source(
    name="NCCL EP",
    where="NCCL 2.29u1, low-latency kernels",
    conditions="H100; 128 tokens per rank, hidden 7168, top-8 of 256, bf16; GB/s taken of every choice's 14,336 bytes",
    rows=(*_rows(8, 224.3, 185.2, "fit"), *_rows(16, 76.7, 73.0, "check"), *_rows(64, 48.8, 43.8, "check")),
)
