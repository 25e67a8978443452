"""What a dense matrix product costs: [m, k] x [k, n] with a launch, tiles in waves over the SMs, and memory traffic.

    seconds = launch + (tiles^p + traffic^p)^(1/p) + quantisation of the input, where the table's kernel does it

`tiles` is the cheapest of many tilings (`moecast.sim.cost.tile_loop`), `traffic` moves weights, input and output once.
Sources: NVIDIA, "Matrix Multiplication Background User's Guide" (tiles and waves); the roofline (Williams et al., CACM
52(4), 2009), with a p-norm in place of the maximum. docs/cost/gemm.md has the parameters' errors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from importlib import resources
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.gpus import gpu_key, nearest
from moecast.sim.cost.tile_loop import TileCost, cheapest_tiles

if TYPE_CHECKING:
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

NEUTRAL = "neutral"  # no engine: fitted on the rows of all
OUTPUT_BYTES = 2.0


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


def _tiles(smallest: int, splits: tuple[int, ...]) -> Float:
    sides = [side for side in _SIDES if side >= smallest]
    pairs = [(rows, columns) for rows, columns in product(sides, sides) if rows * columns >= 1024]
    return np.array([(rows, columns, s) for (rows, columns), s in product(pairs, splits)], np.float64)


# What a kernel library has to choose from: cuBLAS everything; CUTLASS and DeepGEMM as engines launch them no split-K.
TILE_SETS: Mapping[str, Float] = {
    "split": _tiles(16, _SPLITS),
    "whole": _tiles(16, (1,)),
    "whole64": _tiles(64, (1,)),
    "whole128": _tiles(128, (1,)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GemmParameters:
    """Constants of one GPU's, engine's and element type's matrix products; parts and ratios wherever they can be.

    Parameters
    ----------
    tiles
        Name of the set of candidate tiles (`TILE_SETS`).
    launch_s
        Time of a product without work, its input's quantisation included where the measured kernel does it.
    peak_part, memory_part
        Reached parts of the dense peak and of the memory's bandwidth.
    tile_traffic, epilogue
        Rates at which all SMs together take in operands (out of L2) and put out results, over the memory's bandwidth.
    inner_s
        Seconds per element of k that no tile goes below: latency of its main loop.
    wave_s
        Prologue and tail of a wave.
    split_s, split_traffic
        Cost of splitting k, and rate of the partial sums over the memory's bandwidth.
    softness
        p of the norm that joins tiles and traffic; 1 adds them, infinity takes the longer.
    write_weight
        What a written byte costs of a read one.
    quantise_row_s, quantise_bytes, quantise_inner_s
        Quantisation of the input inside the measured kernels: seconds per row, bytes that move per element, and seconds
        per element of a single row (a block of threads takes a row); 0 where the input comes quantised.

    Raises
    ------
    ValueError
        A number out of its range, or an unknown set of tiles.
    """

    tiles: str
    launch_s: float
    peak_part: float
    memory_part: float
    tile_traffic: float
    epilogue: float
    inner_s: float
    wave_s: float
    split_s: float
    split_traffic: float
    softness: float
    write_weight: float
    quantise_row_s: float = 0.0
    quantise_bytes: float = 0.0
    quantise_inner_s: float = 0.0

    def __post_init__(self) -> None:
        if self.tiles not in TILE_SETS:
            raise ValueError(f"tiles = {self.tiles!r}: one of {', '.join(TILE_SETS)}")
        for item in fields(self)[1:]:
            value, zero = getattr(self, item.name), item.name.endswith("_s") or item.name.startswith("quantise")
            if not (0 < value < float("inf") or (zero and value == 0)):
                raise ValueError(f"{item.name} = {value!r} must be {'at least 0' if zero else 'positive'} and finite")
        for name, least in (("softness", 1.0),):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be at least {least:g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GemmEntry:
    """Fitted parameters, where they come from and how far off they are on rows that did not fit them."""

    gpu: str
    engine: str
    version: str
    element_type: str
    parameters: GemmParameters
    fitted: int
    rows: int
    seed: int
    median: float
    p90: float
    bias: float
    note: str = ""
    transferred: str = ""  # from which GPU, engine or type, where they are not its own


def gemm_seconds(
    parameters: GemmParameters,
    hardware: Hardware,
    m: npt.ArrayLike,
    n: npt.ArrayLike,
    k: npt.ArrayLike,
    *,
    element_type: str,
    sms: int | None = None,
) -> Float:
    """Time of [m, k] x [k, n] as one launch; 0 where m, n or k is 0. Never falls when m, n or k grows.

    Parameters
    ----------
    m, n, k
        Rows, outer and inner width; arrays that broadcast together.
    element_type
        One of `TYPES`.
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
    kind, used = _kind(element_type), hardware.sms if sms is None else sms
    if not 0 < used <= hardware.sms:
        raise ValueError(f"sms = {sms!r} must be 1 to {hardware.sms}")
    m_R, n_R, k_R = (np.ascontiguousarray(x, np.float64) for x in np.broadcast_arrays(m, n, k))
    for name, sizes in (("m", m_R), ("n", n_R), ("k", k_R)):
        if sizes.size and not (sizes.min() >= 0 and sizes.max() < np.inf):
            raise ValueError(f"{name} must be finite and not negative")
    cost = _tile_cost(parameters, hardware, kind)
    tiled = cheapest_tiles(m_R.ravel(), n_R.ravel(), k_R.ravel(), TILE_SETS[parameters.tiles], cost, float(used))
    moved = (
        n_R * k_R * kind.weight_bytes
        + m_R * k_R * kind.input_bytes
        + parameters.write_weight * OUTPUT_BYTES * m_R * n_R
    )
    joined = _norm(tiled.reshape(m_R.shape), moved / _memory_rate(parameters, hardware), parameters.softness)
    seconds = parameters.launch_s + joined + _quantise_seconds(parameters, hardware, m_R, k_R)
    return np.where(m_R * n_R * k_R > 0, seconds, 0.0)


def _kind(element_type: str) -> GemmType:
    if element_type not in TYPES:
        raise ValueError(f"element type {element_type!r}: one of {', '.join(TYPES)}")
    return TYPES[element_type]


def _memory_rate(parameters: GemmParameters, hardware: Hardware) -> float:
    return hardware.memory_Bps * parameters.memory_part


def _tile_cost(parameters: GemmParameters, hardware: Hardware, kind: GemmType) -> TileCost:
    peaks = hardware.peak_flop_per_s
    peak = next(peaks[rate] for rate in kind.rates if rate in peaks) * kind.rate_factor
    share_Bps = hardware.memory_Bps / hardware.sms
    return TileCost(
        flop_s=hardware.sms / (peak * parameters.peak_part),
        row_s=kind.input_bytes / (share_Bps * parameters.tile_traffic),
        column_s=kind.weight_bytes / (share_Bps * parameters.tile_traffic),
        inner_s=parameters.inner_s,
        wave_s=parameters.wave_s,
        output_s=OUTPUT_BYTES / (share_Bps * parameters.epilogue),
        split_s=parameters.split_s,
        # float32, written once and read once
        partial_s=2 * 4.0 / (hardware.memory_Bps * parameters.split_traffic),
    )


def _quantise_seconds(parameters: GemmParameters, hardware: Hardware, m: Float, k: Float) -> Float:
    """A block of threads for each row: as long as one row takes, or all rows by their number and bytes."""
    element_s = parameters.quantise_bytes / _memory_rate(parameters, hardware)
    return np.maximum(k * parameters.quantise_inner_s, m * (parameters.quantise_row_s + k * element_s))


def _norm(a: Float, b: Float, p: float) -> Float:
    """(a^p + b^p)^(1/p) without overflow or underflow."""
    larger, smaller = np.maximum(a, b), np.minimum(a, b)
    ratio = np.divide(smaller, larger, out=np.zeros_like(larger), where=larger > 0)
    norm: Float = larger * (1 + ratio**p) ** (1 / p)
    return norm


@cache
def load_parameters() -> Mapping[tuple[str, str, str], GemmEntry]:
    """All fitted parameters, by GPU, engine and element type; of several versions of an engine the newest."""
    text = resources.files("moecast.sim.cost").joinpath("fitted/gemm.json").read_text(encoding="utf-8")
    entries: dict[tuple[str, str, str], GemmEntry] = {}
    for item in json.loads(text)["entries"]:  # written oldest version first
        entry = GemmEntry(**item | {"parameters": GemmParameters(**item["parameters"])})
        entries[entry.gpu, entry.engine, entry.element_type] = entry
    return entries


@lru_cache(maxsize=1024)
def _find(gpu: str, engine: str, element_type: str) -> GemmEntry:
    entries = load_parameters()
    for name in (engine, NEUTRAL):
        having = {key[0] for key in entries if key[1:] == (name, element_type)}
        try:
            found = entries[nearest(gpu, having), name, element_type]
        except ValueError:
            continue
        come_from = [
            *([f"GPU {found.gpu}"] if found.gpu != gpu else []),
            *([f"engine {name}"] if name != engine else []),
        ]
        return replace(found, transferred=", ".join(come_from))
    return replace(_find(gpu, engine, "bf16"), transferred=f"GPU {gpu}, type bf16")


def find_parameters(hardware: Hardware, *, engine: str, element_type: str) -> GemmEntry:
    """The parameters to use for a GPU, an engine and an element type; `transferred` says what they stand in for.

    The engine's own on the nearest GPU, else the neutral ones; a type that no table has takes those of bf16.

    Raises
    ------
    ValueError
        An unknown element type.
    """
    _kind(element_type)
    return _find(gpu_key(hardware), engine, element_type)
