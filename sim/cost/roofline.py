"""The roofline: a kernel takes the time of its arithmetic or of its memory traffic, whichever is longer.

Source: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009; the reached part of each peak
comes from the hardware table.

Axes: G rank; arrays may have any axes in front.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.sim.element_types import multiply_type, weight_bytes

if TYPE_CHECKING:
    from moecast.sim.cost.shapes import AttentionCore
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

OUTPUT_BYTES = 2  # GEMMs write bf16
# queries that share one reading of the keys in prefill; FlashAttention's block of rows
QUERY_TILE = 128


def flop_rate(hardware: Hardware, element_type: str, kernel: str) -> float:
    """FLOP/s that a kernel of a kind ("gemm", "grouped_gemm", "attention") reaches on weights of an element type."""
    peak = hardware.peak_flop_per_s[multiply_type(element_type, hardware.peak_flop_per_s)]
    return float(peak * hardware.efficiency[kernel])


def memory_seconds(hardware: Hardware, traffic_bytes: npt.ArrayLike) -> Float:
    """Time to move bytes between the GPU and its memory."""
    return np.asarray(traffic_bytes, np.float64) / (hardware.memory_Bps * hardware.efficiency["memory"])


def kernel_seconds(
    hardware: Hardware, *, flop: npt.ArrayLike, traffic_bytes: npt.ArrayLike, element_type: str, kernel: str
) -> Float:
    """Return the longer of arithmetic and traffic; the launch comes extra."""
    arithmetic = np.asarray(flop, np.float64) / flop_rate(hardware, element_type, kernel)
    return np.maximum(arithmetic, memory_seconds(hardware, traffic_bytes))


def launched(hardware: Hardware, seconds: Float, work: npt.ArrayLike, kernels: int) -> Float:
    """Add the launches of `kernels` where there is work; 0 elsewhere."""
    result: Float = np.where(np.asarray(work) > 0, seconds + kernels * hardware.kernel_launch_s, 0.0)
    return result


def gemm_seconds(
    hardware: Hardware,
    rows_G: npt.ArrayLike,
    *,
    inner: int,
    outer: int,
    element_type: str,
    input_bytes: int | None = None,
) -> Float:
    """Multiply [rows, inner] by [inner, outer]: 2 FLOP a pair; weights, input and output move once; one launch.

    `input_bytes` per row; None: bf16.
    """
    rows = np.asarray(rows_G, np.float64)
    per_row = (2 * inner if input_bytes is None else input_bytes) + OUTPUT_BYTES * outer
    traffic = inner * outer * weight_bytes(element_type) + rows * per_row
    seconds = kernel_seconds(
        hardware, flop=2.0 * rows * inner * outer, traffic_bytes=traffic, element_type=element_type, kernel="gemm"
    )
    return launched(hardware, seconds, rows, 1)


def elementwise_seconds(hardware: Hardware, rows_G: npt.ArrayLike, *, row_bytes: float, kernels: int = 1) -> Float:
    """Kernels that only move memory: `row_bytes` per row over all of them."""
    rows: Any = np.asarray(rows_G, np.float64)
    return launched(hardware, memory_seconds(hardware, rows * row_bytes), rows, kernels)


def readers(phase: str, queries: float) -> float:
    """Tokens that share one reading of a key: of decode a sequence's (`queries`), of prefill a tile of them."""
    return QUERY_TILE if phase == "prefill" else queries


def core_seconds(
    core: AttentionCore,
    hardware: Hardware,
    *,
    phase: str,
    tokens_G: npt.ArrayLike,
    keys_G: npt.ArrayLike,
    queries: float = 1.0,
) -> Float:
    """Scores, softmax and weighted sum: 2 FLOP per element of each (query, key) and (query, value) pair.

    Decode reads each sequence's keys from the cache, for all its tokens (`queries`) at once;
    prefill reads them once per tile of 128 queries.
    """
    tokens, keys = np.asarray(tokens_G, np.float64), np.asarray(keys_G, np.float64)
    key_bytes = core.key_bytes(phase) / readers(phase, queries)
    seconds = kernel_seconds(
        hardware,
        flop=keys * core.pair_flop(phase),
        traffic_bytes=keys * key_bytes + tokens * core.query_bytes(phase),
        element_type="bf16",
        kernel="attention",
    )
    return launched(hardware, seconds, tokens, 1)
