"""DeepEP and NCCL over Elastic Fabric Adapters, as AWS measured them."""

from __future__ import annotations

from moecast.validate.published.questions import AllToAll, ExchangeName, TokenExchange
from moecast.validate.published.row import Row, Source, Use

ABOUT_60_MIB = 60 * 2**20
PEAK_BYTES = 8 * 2**30
"""Far above what a start costs: the rate that nccl-tests reach at their largest sizes."""


def _deepep(name: str, cluster: str, nodes: int, dispatch_GBps: float, combine_GBps: float, use: Use) -> list[Row]:
    values: dict[ExchangeName, float] = {"dispatch": dispatch_GBps, "combine": combine_GBps}
    return [
        Row(
            name=f"{name}: DeepEP {exchange}, {8 * nodes} ranks",
            value=value,
            unit="GB/s",
            use=use,
            question=TokenExchange(
                cluster=cluster,
                nodes=nodes,
                ranks=8 * nodes,
                tokens=4096,
                mode="per_domain",
                exchange=exchange,
                dispatch_type="bf16",
                unit="GB/s",
            ),
        )
        for exchange, value in values.items()
    ]


def _nccl(name: str, cluster: str, nodes: int, some_GBps: float, peak_GBps: float, use: Use) -> list[Row]:
    sizes = (("of about 60 MiB", ABOUT_60_MIB, some_GBps), ("at its peak", PEAK_BYTES, peak_GBps))
    return [
        Row(
            name=f"{name}: NCCL all-to-all {size}, {8 * nodes} ranks",
            value=value,
            unit="GB/s",
            use=use,
            question=AllToAll(
                cluster=cluster, nodes=nodes, ranks=8 * nodes, bytes_per_rank=size_bytes, unit="GB/s", rung="bound"
            ),
        )
        for size, size_bytes, value in sizes
    ]


_B300, _P5 = "B300, 16 EFA per node", "p5 (H100), 32 EFA per node"

SOURCE = Source(
    name="AWS",
    where="awsome-distributed-ai, micro-benchmarks/expert-parallelism (MIT-0)",
    conditions="4096 tokens, hidden 7168, top-8 of 256, bf16, GB/s of the RDMA leg; a repeat agrees within about 1 %",
    rows=(
        *_deepep(_B300, "p6-b300", 2, 126.6, 106.4, "fit"),
        *_deepep(_B300, "p6-b300", 8, 84.2, 73.1, "check"),
        *_nccl(_B300, "p6-b300", 2, 104.9, 179.6, "fit"),
        *_nccl(_B300, "p6-b300", 8, 74.0, 103.2, "check"),
        *_deepep(_P5, "p5", 4, 43.7, 46.1, "fit"),
        *_nccl(_P5, "p5", 4, 45.1, 53.9, "fit"),
    ),
)
