"""DeepSeek's DeepEP on H800: the low-latency kernels and the normal ones."""

from __future__ import annotations

from typing import Literal

from moecast.validate.published.questions import ExchangeName, TokenExchange
from moecast.validate.published.row import Row, Source, Use

_TWO_NODES = (
    "V1's kernels do not fill the NICs of two nodes: half of the counted bytes stay in the node, "
    "so that 43 GB/s counted are 21 on the wire; the simulator fills them"
)


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
                cluster="h800-node",
                nodes=max(1, ranks // 8),
                ranks=ranks,
                tokens=128,
                mode="per_choice",
                exchange=exchange,
                only_nics=only_nics,
            ),
        )
        for exchange, value in values.items()
    )


def _normal(
    ranks: int,
    dispatch_GBps: float,
    combine_GBps: float,
    use: Use,
    *,
    cluster: str = "h800-node",
    tokens: int = 4096,
    version: str = "normal",
    note: str = "",
) -> tuple[Row, ...]:
    values: dict[ExchangeName, float] = {"dispatch": dispatch_GBps, "combine": combine_GBps}
    return tuple(
        Row(
            name=f"{version} {exchange}, {ranks} ranks",
            value=value,
            unit="GB/s",
            use=use,
            question=_kernel(cluster, ranks, tokens, exchange),
            note=note,
        )
        for exchange, value in values.items()
    )


def _kernel(
    cluster: str, ranks: int, tokens: int, exchange: ExchangeName, dispatch_type: Literal["fp8", "bf16"] = "fp8"
) -> TokenExchange:
    return TokenExchange(
        cluster=cluster,
        nodes=ranks // 8,
        ranks=ranks,
        tokens=tokens,
        mode="per_domain",
        exchange=exchange,
        dispatch_type=dispatch_type,
        unit="GB/s",
    )


def _elsewhere(name: str, value: float, question: TokenExchange, *, use: Use = "check", note: str = "") -> Row:
    return Row(name=f"V1 {name}", value=value, unit="GB/s", use=use, question=question, note=note)


SOURCE = Source(
    name="DeepEP",
    where="deepseek-ai/DeepEP, README at commits 77bb07a (NICs only) and de8cfca (NVLink inside the node)",
    conditions="H800, one 400 Gb/s ConnectX-7 per GPU; hidden 7168, top-8 of 256 experts, FP8 "
    "dispatch, bf16 combine; low-latency 128 tokens per rank, normal 4096; routing as its tests "
    "draw it, normal: in 4 of the nodes",
    rows=(
        *_low_latency(8, 163, 318, "fit", only_nics=True),
        *_low_latency(16, 173, 329, "check", only_nics=True),
        *_low_latency(64, 186, 353, "check", only_nics=True),
        *_low_latency(256, 194, 360, "fit", only_nics=True),
        *_low_latency(8, 77, 114, "fit", only_nics=False),
        *_low_latency(64, 173, 314, "check", only_nics=False),
        *_normal(8, 153, 158, "fit"),
        *_normal(16, 43, 43, "check", note=_TWO_NODES),
        *_normal(32, 58, 57, "check"),
        *_normal(64, 51, 50, "fit"),
    ),
)

V2 = Source(
    name="DeepEP V2",
    where="deepseek-ai/DeepEP, README of V2",
    conditions="Hopper with one ConnectX-7 per GPU, taken as H100; 8192 tokens per rank, else as the normal kernels",
    rows=(
        *_normal(16, 90, 81, "check", cluster="dgx-h100", tokens=8192, version="V2"),
        *_normal(32, 61, 61, "check", cluster="dgx-h100", tokens=8192, version="V2"),
    ),
)

ELSEWHERE = Source(
    name="DeepEP, others",
    where="reports of DeepEP's users",
    conditions="normal kernels of V1, taken as in its README: 4096 tokens, hidden 7168, top-8 of 256",
    rows=(
        _elsewhere("dispatch, 16 ranks, H200", 38.2, _kernel("dgx-h200", 16, 4096, "dispatch"), note=_TWO_NODES),
        _elsewhere(
            "dispatch in bf16, 16 ranks, H200",
            40.9,
            _kernel("dgx-h200", 16, 4096, "dispatch", dispatch_type="bf16"),
            note=_TWO_NODES,
        ),
        _elsewhere("combine, 16 ranks, H200", 44.4, _kernel("dgx-h200", 16, 4096, "combine"), note=_TWO_NODES),
        _elsewhere(
            "dispatch, 32 ranks, H100 over RoCE",
            37.9,
            _kernel("hgx-h100-roce", 32, 4096, "dispatch"),
            use="in kind",
            note="how its fabric hashes was not recorded; with default ECMP it got far less",
        ),
    ),
)

SOURCES = (SOURCE, V2, ELSEWHERE)
