"""What a dense matrix product costs: [m, k] x [k, n] with a launch, tiles in waves over the SMs, and memory traffic.

    seconds = launch + (tiles^p + traffic^p)^(1/p) + quantisation of the input, where the table's
    kernel does it

`tiles` is the cheapest of many tilings (`moecast.sim.cost.tile_loop`), `traffic` moves weights,
input and output once. Sources: NVIDIA, "Matrix Multiplication Background User's Guide" (tiles and
waves); the roofline (Williams et al., CACM 52(4), 2009), with a p-norm in place of the maximum.
docs/cost/gemm.md has the parameters' errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.entries import Entry, find_entry, load_entries, newest
from moecast.sim.cost.formulas import check_positive, soft_maximum
from moecast.sim.cost.gpus import gpu_key
from moecast.sim.cost.tile_loop import TileCost, cheapest_tiles

if TYPE_CHECKING:
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

OUTPUT_BYTES = 2.0
QUANTISE_BYTES = 3.0  # bf16 in, a byte out
_MAY_BE_ZERO: tuple[str, ...] = ("launch_s", "inner_s", "wave_s", "split_s")
_MAY_BE_ZERO += ("quantise_row_s", "quantise_element_s", "quantise_inner_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class GemmType:
    """How a kind of product stores its operands, and at which of a GPU's peaks it multiplies them."""

    rates: tuple[str, ...]  # the first that the GPU has
    rate_factor: float
    weight_bytes: float
    input_bytes: float


# int8 x int8 runs at twice the bf16 rate on all these GPUs; weight-only kernels widen to bf16.
TYPES: Mapping[str, GemmType] = {
    "bf16": GemmType(rates=("bf16",), rate_factor=1, weight_bytes=2, input_bytes=2),
    "fp8": GemmType(rates=("fp8", "bf16"), rate_factor=1, weight_bytes=1, input_bytes=1),
    "fp8_block": GemmType(rates=("fp8", "bf16"), rate_factor=1, weight_bytes=1, input_bytes=1 + 4 / 128),
    "nvfp4": GemmType(rates=("fp4", "bf16"), rate_factor=1, weight_bytes=0.5625, input_bytes=0.5625),
    "int8_wo": GemmType(rates=("bf16",), rate_factor=1, weight_bytes=1, input_bytes=2),
    "int4_wo": GemmType(rates=("bf16",), rate_factor=1, weight_bytes=0.5, input_bytes=2),
    "w8a8_int8": GemmType(rates=("bf16",), rate_factor=2, weight_bytes=1, input_bytes=1),
}

_SIDES = (16, 32, 64, 96, 128, 192, 256)
_SPLITS = (1, 2, 4, 8, 16, 32)


def _tiles(sides: Sequence[int], splits: Sequence[int] = (1,), widths: Sequence[int] = (), stepped: int = 0) -> Float:
    """Candidates of (rows, columns, splits, most m).

    Tiles of fewer than `stepped` rows only where they hold all of m.

    The larger m, the fewer candidates are left, so that the cheapest of them never gets cheaper.
    """
    pairs = [(rows, columns) for rows, columns in product(sides, widths or sides) if rows * columns >= 1024]
    most = {rows: rows if rows < stepped else np.inf for rows in sides}
    return np.array([(rows, columns, s, most[rows]) for s, (rows, columns) in product(splits, pairs)], np.float64)


# What a kernel library has to choose from: cuBLAS everything; CUTLASS and DeepGEMM as engines
# launch them no split-K, and CUTLASS in engines by rules on m ("stepped"), DeepGEMM too, with any
# multiple of 16 columns ("fine").
TILE_SETS: Mapping[str, Float] = {
    "split": _tiles(_SIDES, _SPLITS),
    "whole": _tiles(_SIDES),
    "whole64": _tiles(_SIDES[2:]),
    "whole128": _tiles(_SIDES[4:]),
    "stepped16": _tiles((16, 32, 64, 128, 256), widths=(64, 128, 256), stepped=128),
    "stepped64": _tiles((64, 128), widths=(64, 128), stepped=128),
    "stepped128": _tiles((64, 128), widths=(128, 256), stepped=128),
    "stepped256": _tiles((64, 128, 256), widths=(64, 128, 256), stepped=256),
    "fine128": _tiles((64, 128), widths=range(16, 257, 16), stepped=128),
    "fine256": _tiles((64, 128, 256), widths=range(16, 257, 16), stepped=256),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GemmParameters:
    """Constants of one GPU's, engine's and element type's matrix products.

    Parts and ratios wherever they can be.

    Parameters
    ----------
    tiles
        Name of the set of candidate tiles (`TILE_SETS`).
    launch_s
        Time of a product without work, its input's quantisation included where the measured kernel
        does it.
    peak_part, memory_part
        Reached parts of the dense peak and of the memory's bandwidth.
    operand_Bps, output_Bps
        Rates at which one SM takes in operands (out of L2) and puts out results.
    inner_s
        Seconds per element of k that no tile goes below: latency of its main loop.
    wave_s
        Prologue and tail of a wave.
    split_s, partial_Bps
        Cost of splitting k, and rate of the partial sums through one SM.
    softness
        p of the norm that joins tiles and traffic; 1 adds them, infinity takes the longer.
    write_weight
        What a written byte costs of a read one.
    quantise_row_s, quantise_element_s, quantise_inner_s
        Quantisation of the input inside the measured kernels, in seconds of one SM per row and per
        element, and in seconds per element of a row alone (a block of threads takes a row); 0 where
        the input comes quantised.

    Raises
    ------
    ValueError
        A number out of its range, or an unknown set of tiles.
    """

    tiles: str
    launch_s: float
    peak_part: float
    memory_part: float
    operand_Bps: float
    output_Bps: float
    inner_s: float
    wave_s: float
    split_s: float
    partial_Bps: float
    softness: float
    write_weight: float
    quantise_row_s: float = 0.0
    quantise_element_s: float = 0.0
    quantise_inner_s: float = 0.0

    def __post_init__(self) -> None:
        if self.tiles not in TILE_SETS:
            raise ValueError(f"tiles = {self.tiles!r}: one of {', '.join(TILE_SETS)}")
        check_positive(self, may_be_zero=_MAY_BE_ZERO)
        if self.softness < 1:
            raise ValueError(f"softness = {self.softness!r} must be at least 1")


def gemm_seconds(
    parameters: GemmParameters,
    hardware: Hardware,
    m: npt.ArrayLike,
    n: npt.ArrayLike,
    k: npt.ArrayLike,
    *,
    element_type: str,
    batch: npt.ArrayLike = 1,
    sms: int | None = None,
) -> Float:
    """Time of [m, k] x [k, n] as one launch.

    0 where there is no work. Never falls when a size grows.

    Parameters
    ----------
    m, n, k
        Rows, outer and inner width; arrays that broadcast together.
    element_type
        One of `TYPES`.
    batch
        Products of this shape, each with its own weights, in the one launch.
    sms
        SMs that are free for it; None: all.

    Returns
    -------
    float64 of the broadcast shape, seconds.

    Raises
    ------
    ValueError
        A size that is negative or not finite, an unknown type, or no SMs.
    """
    kind = _kind(element_type)
    m_R, n_R, k_R, batch_R = _sizes(m=m, n=n, k=k, batch=batch)
    tiled = tile_seconds(parameters, hardware, m_R, n_R, k_R, element_type=element_type, batch=batch_R, sms=sms)
    moved = batch_R * (
        n_R * k_R * kind.weight_bytes
        + m_R * k_R * kind.input_bytes
        + parameters.write_weight * OUTPUT_BYTES * m_R * n_R
    )
    joined = soft_maximum(tiled, moved / _memory_rate(parameters, hardware), parameters.softness)
    seconds = parameters.launch_s + joined + _quantise_seconds(parameters, hardware, m_R * batch_R, k_R)
    return np.where(m_R * n_R * k_R * batch_R > 0, seconds, 0.0)


def tile_seconds(
    parameters: GemmParameters,
    hardware: Hardware,
    m: npt.ArrayLike,
    n: npt.ArrayLike,
    k: npt.ArrayLike,
    *,
    element_type: str,
    batch: npt.ArrayLike = 1,
    sms: int | None = None,
) -> Float:
    """The part of `gemm_seconds` that its cheapest tiling takes: no launch, no memory traffic, no quantisation."""
    kind, used = _kind(element_type), hardware.sms if sms is None else sms
    if not 0 < used <= hardware.sms:
        raise ValueError(f"sms = {sms!r} must be 1 to {hardware.sms}")
    sizes = _sizes(m=m, n=n, k=k, batch=batch)
    cost = _tile_cost(parameters, hardware, kind)
    tiled = cheapest_tiles(*(size.ravel() for size in sizes), TILE_SETS[parameters.tiles], cost, float(used))
    return np.reshape(tiled, sizes[0].shape)


def _sizes(**given: npt.ArrayLike) -> list[Float]:
    """The sizes as float64 arrays of one shape, each checked by its name."""
    sizes = [np.array(size, np.float64) for size in np.broadcast_arrays(*given.values())]
    for name, size in zip(given, sizes, strict=True):
        if size.size and not (size.min() >= 0 and size.max() < np.inf):
            raise ValueError(f"{name} must be finite and not negative")
    return sizes


def _kind(element_type: str) -> GemmType:
    if element_type not in TYPES:
        raise ValueError(f"element type {element_type!r}: one of {', '.join(TYPES)}")
    return TYPES[element_type]


def _memory_rate(parameters: GemmParameters, hardware: Hardware) -> float:
    return hardware.memory_Bps * parameters.memory_part


def _tile_cost(parameters: GemmParameters, hardware: Hardware, kind: GemmType) -> TileCost:
    peaks = hardware.peak_flop_per_s
    peak = next(peaks[rate] for rate in kind.rates if rate in peaks) * kind.rate_factor
    return TileCost(
        flop_s=hardware.sms / (peak * parameters.peak_part),
        row_s=kind.input_bytes / parameters.operand_Bps,
        column_s=kind.weight_bytes / parameters.operand_Bps,
        inner_s=parameters.inner_s,
        wave_s=parameters.wave_s,
        output_s=OUTPUT_BYTES / parameters.output_Bps,
        split_s=parameters.split_s,
        # float32, written once and read once
        partial_s=2 * 4.0 / (hardware.sms * parameters.partial_Bps),
    )


def _quantise_seconds(parameters: GemmParameters, hardware: Hardware, m: Float, k: Float) -> Float:
    """A block of threads for each row: as long as one row takes, or all rows over the SMs, or their way to memory."""
    if not parameters.quantise_inner_s:
        return np.zeros(m.shape)
    work_s = m * (parameters.quantise_row_s + k * parameters.quantise_element_s) / hardware.sms
    moved_s = m * k * QUANTISE_BYTES / _memory_rate(parameters, hardware)
    return np.maximum(k * parameters.quantise_inner_s, np.maximum(work_s, moved_s))


@cache
def all_parameters() -> tuple[Entry[GemmParameters], ...]:
    """All fitted parameters, of older versions of an engine, too; the kind is the element type."""
    return load_entries("gemm", GemmParameters)


@cache
def load_parameters() -> Mapping[tuple[str, str, str], Entry[GemmParameters]]:
    """Fitted parameters by GPU, engine and element type; of several versions of an engine the newest."""
    return newest(all_parameters())


@lru_cache(maxsize=1024)
def _find(gpu: str, engine: str, element_type: str) -> Entry[GemmParameters]:
    found = find_entry(load_parameters(), gpu, engine, element_type)
    return found or replace(_find(gpu, engine, "bf16"), transferred=f"GPU {gpu}, type bf16")


def find_parameters(hardware: Hardware, *, engine: str, element_type: str) -> Entry[GemmParameters]:
    """The parameters to use for a GPU, an engine and an element type.

    `transferred` says what they stand in for.

    The engine's own on the nearest GPU, else the neutral ones; a type that no table has takes those
    of bf16.

    Raises
    ------
    ValueError
        An unknown element type.
    """
    _kind(element_type)
    return _find(gpu_key(hardware), engine, element_type)
