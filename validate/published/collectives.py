"""Collectives on the bytes of a group, inside one NVLink domain: Azure's, TokenWeave's and CoreWeave's nccl-tests."""

from __future__ import annotations

from typing import Literal

from moecast.validate.published.questions import GroupCollective
from moecast.validate.published.row import Row, Source, Use

KIB, MIB, GIB = 2**10, 2**20, 2**30
_SIZES = {64 * KIB: "64 KiB", MIB: "1 MiB", 8 * MIB: "8 MiB", 16 * MIB: "16 MiB", 128 * MIB: "128 MiB",
          256 * MIB: "256 MiB", 512 * MIB: "512 MiB", 8 * GIB: "8 GiB"}  # fmt: skip
_RING = "at this size it runs at a ring's rate, so its switches did not add"


def collective_row(
    value: float,
    use: Use,
    *,
    cluster: str,
    operation: str,
    size: int,
    ranks: int = 8,
    kind: str = "nccl",
    unit: Literal["us", "GB/s"] = "us",
    note: str = "",
) -> Row:
    """Give the row of one operation, size and number of GPUs, inside a domain."""
    question = GroupCollective(
        cluster=cluster,
        operation=operation,
        kind=kind,
        ranks=ranks,
        size_bytes=size,
        unit="us" if unit == "us" else "GB/s",
    )
    name = f"{'NCCL' if kind == 'nccl' else 'multimem'} {operation}, {ranks} GPUs, {_SIZES[size]}"
    return Row(name=name, value=value, unit=unit, use=use, question=question, note=note)


def _azure(size: int, bus_GBps: float, use: Use) -> Row:
    return collective_row(bus_GBps, use, cluster="dgx-h200", operation="all-reduce", size=size, unit="GB/s")


def _tokenweave(operation: str, size: int, value_us: float, use: Use, kind: str = "nccl", note: str = "") -> Row:
    return collective_row(value_us, use, cluster="dgx-h100", operation=operation, size=size, kind=kind, note=note)


AZURE = Source(
    name="Azure ND H200 v5",
    where="Azure's published nccl-tests, NCCL 2.20.5 with NVLS",
    conditions="8 x H200, in-place bus bandwidth",
    rows=(
        _azure(MIB, 52.96, "fit"),
        _azure(16 * MIB, 240.4, "check"),
        _azure(256 * MIB, 432.2, "check"),
        _azure(8 * GIB, 480.0, "fit"),
    ),
)

TOKENWEAVE = Source(
    name="TokenWeave's collectives",
    where="microsoft/tokenweave, figure 5",
    conditions="8 x H100 DGX, bf16",
    rows=(
        _tokenweave("all-reduce", MIB, 35.6, "fit"),
        _tokenweave("all-reduce", MIB, 16.5, "fit", kind="in-switch"),
        _tokenweave("all-reduce", 128 * MIB, 646, "check", note=_RING),
        _tokenweave("all-reduce", 128 * MIB, 501, "check", kind="in-switch"),
        _tokenweave("reduce-scatter", MIB, 29.3, "fit"),
        _tokenweave("reduce-scatter", 512 * MIB, 1420, "fit"),
        _tokenweave("all-gather", MIB, 29.7, "check"),
        _tokenweave("all-gather", 512 * MIB, 1423, "check"),
    ),
)

COREWEAVE = Source(
    name="CoreWeave",
    where="CoreWeave's published nccl-tests, NCCL 2.26.2",
    conditions="GB200 NVL72, bus bandwidth",
    rows=(
        collective_row(
            834.6, "fit", cluster="gb200-nvl72", operation="all-reduce", size=8 * GIB, ranks=72, unit="GB/s"
        ),
    ),
)

SOURCES = (AZURE, TOKENWEAVE, COREWEAVE)
