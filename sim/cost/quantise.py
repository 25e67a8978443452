"""What quantising an activation costs, and any other kernel that only moves memory.

    seconds = launch + the longest of: one row alone, all rows over the SMs, all bytes

A block of threads takes a row (vLLM's and SGLang's per-token kernels), so that one long row is
slow, and many short ones are bound by blocks. Engines take two kernels: one that finds scales, and
one that multiplies and rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.entries import NEUTRAL, Entry, find_entry, load_entries, newest
from moecast.sim.cost.formulas import check_positive
from moecast.sim.cost.gpus import L2_BYTES, gpu_key
from moecast.sim.cost.memory import moving_seconds

if TYPE_CHECKING:
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

KINDS = ("find_scale", "scale")  # the tables' compute_scale and scale_matrix


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantiseParameters:
    """Constants of one quantisation kernel.

    Parameters
    ----------
    launch_s
        Time of the kernel without work.
    element_bytes
        Bytes that move per element: 2 in and 1 out for a kernel that makes FP8 of bf16.
    memory_part, cache_ratio
        Reached part of the memory's bandwidth; rate out of L2 over it.
    row_s, element_s
        Seconds of one SM per row and per element.
    alone_s
        Seconds per element of a single row.

    Raises
    ------
    ValueError
        A number that is not positive and finite, or a cache slower than the memory.
    """

    launch_s: float
    element_bytes: float
    memory_part: float
    cache_ratio: float
    row_s: float
    element_s: float
    alone_s: float

    def __post_init__(self) -> None:
        check_positive(self)
        if self.cache_ratio < 1:
            raise ValueError(f"cache_ratio = {self.cache_ratio!r} must be at least 1")


def quantise_seconds(
    parameters: QuantiseParameters, hardware: Hardware, rows: npt.ArrayLike, width: npt.ArrayLike
) -> Float:
    """Time of one kernel over [rows, width] elements.

    0 without work. Never falls when rows or width grow.

    Raises
    ------
    ValueError
        A size that is negative or not finite.
    """
    m, k = np.broadcast_arrays(np.asarray(rows, np.float64), np.asarray(width, np.float64))
    for name, sizes in (("rows", m), ("width", k)):
        if sizes.size and not (sizes.min() >= 0 and sizes.max() < np.inf):
            raise ValueError(f"{name} must be finite and not negative")
    work_s = m * (parameters.row_s + k * parameters.element_s) / hardware.sms
    moved_s = moving_seconds(
        m * k * parameters.element_bytes,
        memory_Bps=hardware.memory_Bps * parameters.memory_part,
        cache_ratio=parameters.cache_ratio,
        l2_bytes=L2_BYTES[gpu_key(hardware)],
    )
    longest = np.maximum(np.maximum(k * parameters.alone_s, work_s), moved_s)
    return np.where(m * k > 0, parameters.launch_s + longest, 0.0)


def elementwise_seconds(hardware: Hardware, rows: npt.ArrayLike, *, row_bytes: float, kernels: int = 1) -> Float:
    """Time of kernels that move `row_bytes` per row over all of them (norm, activation, rotation).

    0 without rows.

    Derived, not fitted: no table holds such kernels. They launch and reach memory as the neutral
    `scale` kernel does (vLLM's, one launch); rows and elements cost no time of their own.
    """
    parameters = find_parameters(hardware).parameters
    m = np.asarray(rows, np.float64)
    moved_s = moving_seconds(
        m * row_bytes,
        memory_Bps=hardware.memory_Bps * parameters.memory_part,
        cache_ratio=parameters.cache_ratio,
        l2_bytes=L2_BYTES[gpu_key(hardware)],
    )
    return np.where(m > 0, kernels * parameters.launch_s + moved_s, 0.0)


@cache
def all_parameters() -> tuple[Entry[QuantiseParameters], ...]:
    """All fitted parameters; the kind is one of `KINDS`."""
    return load_entries("quantise", QuantiseParameters)


@cache
def load_parameters() -> Mapping[tuple[str, str, str], Entry[QuantiseParameters]]:
    """Fitted parameters by GPU, engine and kind, of the newest versions."""
    return newest(all_parameters())


@lru_cache(maxsize=256)
def _find(gpu: str, engine: str, kind: str) -> Entry[QuantiseParameters] | None:
    return find_entry(load_parameters(), gpu, engine, kind)


def find_parameters(hardware: Hardware, *, engine: str = NEUTRAL, kind: str = "scale") -> Entry[QuantiseParameters]:
    """The parameters of an engine's kernel on a GPU or its nearest relative.

    `transferred` says what they stand for.

    Raises
    ------
    ValueError
        An unknown kind.
    """
    found = _find(gpu_key(hardware), engine, kind) if kind in KINDS else None
    if found is None:
        raise ValueError(f"kind {kind!r}: one of {', '.join(KINDS)}")
    return found
