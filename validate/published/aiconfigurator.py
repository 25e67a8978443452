"""NVIDIA's AIConfigurator tables (Apache-2.0): collectives and DeepEP on one node of eight H200."""

from __future__ import annotations

from moecast.validate.published.collectives import collective_row
from moecast.validate.published.questions import AllToAll, ExchangeName, TokenExchange
from moecast.validate.published.row import Row, Source, Use

MIB = 2**20


def _all_to_all(ranks: int, bytes_per_rank: float, size: str, value_us: float, use: Use) -> Row:
    question = AllToAll(cluster="dgx-h200", ranks=ranks, bytes_per_rank=bytes_per_rank)
    return Row(name=f"NCCL all-to-all, {ranks} GPUs, {size}", value=value_us, unit="us", use=use, question=question)


def _deepep(exchange: ExchangeName, value_us: float) -> Row:
    question = TokenExchange(cluster="dgx-h200", ranks=8, tokens=128, mode="per_choice", exchange=exchange)
    return Row(
        name=f"DeepEP low-latency {exchange}, 8 ranks", value=value_us, unit="us", use="check", question=question
    )


def _other(operation: str, size: int, value_us: float, use: Use) -> Row:
    return collective_row(value_us, use, cluster="dgx-h200", operation=operation, size=size)


SOURCE = Source(
    name="AIConfigurator",
    where="ai-dynamo/aiconfigurator, NCCL 2.29.2 and DeepEP tables for H200",
    conditions="8 x H200, one node; sizes are bytes per rank; DeepEP: 128 tokens per rank, hidden 7168, top-8 of 256",
    rows=(
        _all_to_all(8, 2**16, "64 KiB", 12.07, "fit"),
        _all_to_all(8, 8 * MIB, "8 MiB", 40.28, "check"),
        _all_to_all(8, 256 * MIB, "256 MiB", 770.8, "fit"),
        _all_to_all(2, 2**16, "64 KiB", 11.48, "check"),
        _all_to_all(2, 256 * MIB, "256 MiB", 470.3, "check"),
        _deepep("dispatch", 35.1),
        _deepep("combine", 67.7),
        _other("all-reduce", 2**16, 19.89, "fit"),
        _other("all-reduce", 8 * MIB, 78.30, "check"),
        _other("all-reduce", 256 * MIB, 1052.6, "fit"),
        _other("all-gather", 8 * MIB, 43.17, "check"),
        _other("reduce-scatter", 8 * MIB, 44.72, "check"),
    ),
)
