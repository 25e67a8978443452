"""What the two batched products of absorbed multi-head latent attention cost: one matrix for each head, one launch.

In decode the expansion of latent vectors multiplies queries ("pre": [tokens, nope] x [nope, latent]
for each head) and what attention gives ("post": [tokens, latent] x [latent, value]); DeepSeek-V2,
arXiv 2405.04434, 2.1 and appendix C.

    seconds = launch + (tiles^p + traffic^p)^(1/p) + quantisation, where the measured module does it

Tiles are those of the engine's bf16 GEMM on the same GPU; only launch, traffic and quantisation are
fitted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.cost import gemm
from moecast.sim.cost.entries import Entry, find_entry, load_entries, newest
from moecast.sim.cost.formulas import check_positive, soft_maximum
from moecast.sim.cost.gpus import L2_BYTES, gpu_key
from moecast.sim.cost.memory import moving_seconds

if TYPE_CHECKING:
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

KINDS = ("bf16", "fp8")


@dataclass(frozen=True, kw_only=True, slots=True)
class MlaBmmParameters:
    """Constants of one engine's batched products.

    Parameters
    ----------
    multiplies
        Element type in which the kernel multiplies ("bf16" for FP8 weights that are widened first).
    launch_s
        Time without work.
    memory_part, cache_ratio
        Reached part of the memory's bandwidth; rate out of L2 over it.
    input_s, output_s
        Seconds of one SM per element of the input and of the output beside the product:
        quantisation.

    Raises
    ------
    ValueError
        A number out of its range, or an unknown type.
    """

    multiplies: str
    launch_s: float
    memory_part: float
    cache_ratio: float
    input_s: float = 0.0
    output_s: float = 0.0

    def __post_init__(self) -> None:
        if self.multiplies not in KINDS:
            raise ValueError(f"multiplies = {self.multiplies!r}: one of {', '.join(KINDS)}")
        check_positive(self, may_be_zero=("input_s", "output_s"))
        if self.cache_ratio < 1:
            raise ValueError(f"cache_ratio = {self.cache_ratio!r} must be at least 1")


def mla_bmm_seconds(
    parameters: MlaBmmParameters,
    tiles: gemm.GemmParameters,
    hardware: Hardware,
    tokens: npt.ArrayLike,
    heads: npt.ArrayLike,
    *,
    inner: npt.ArrayLike,
    outer: npt.ArrayLike,
) -> Float:
    """Time of [tokens, inner] x [inner, outer] for each of `heads`.

    0 without work. Never falls when a size grows.

    `tiles`: the parameters of the GPU's bf16 GEMM. DeepSeek's sizes: inner 128 and outer 512 before
    attention, inner 512 and outer 128 after it.

    Raises
    ------
    ValueError
        A size that is negative or not finite.
    """
    t, h, k, n = (np.array(x, np.float64) for x in np.broadcast_arrays(tokens, heads, inner, outer))
    tiled = gemm.tile_seconds(tiles, hardware, t, n, k, batch=h, element_type=parameters.multiplies)
    kind = gemm.TYPES[parameters.multiplies]
    moved = h * (n * k * kind.weight_bytes + t * k * kind.input_bytes + t * n * gemm.OUTPUT_BYTES)
    traffic = moving_seconds(
        moved,
        memory_Bps=hardware.memory_Bps * parameters.memory_part,
        cache_ratio=parameters.cache_ratio,
        l2_bytes=L2_BYTES[gpu_key(hardware)],
    )
    beside = t * h * (k * parameters.input_s + n * parameters.output_s) / hardware.sms
    seconds = parameters.launch_s + soft_maximum(tiled, traffic, tiles.softness) + beside
    return np.where(t * h * k * n > 0, seconds, 0.0)


@cache
def all_parameters() -> tuple[Entry[MlaBmmParameters], ...]:
    """All fitted parameters; the kind is the element type of the weights."""
    return load_entries("mla_bmm", MlaBmmParameters)


@cache
def load_parameters() -> Mapping[tuple[str, str, str], Entry[MlaBmmParameters]]:
    """Fitted parameters by GPU, engine and element type, of the newest versions."""
    return newest(all_parameters())


@lru_cache(maxsize=256)
def _find(gpu: str, engine: str, kind: str) -> Entry[MlaBmmParameters] | None:
    return find_entry(load_parameters(), gpu, engine, kind)


def find_parameters(hardware: Hardware, *, engine: str, element_type: str) -> Entry[MlaBmmParameters]:
    """The parameters of an engine on a GPU or its nearest relative.

    `transferred` says what they stand for.

    Raises
    ------
    ValueError
        An unknown element type.
    """
    found = _find(gpu_key(hardware), engine, element_type) if element_type in KINDS else None
    if found is None:
        raise ValueError(f"element type {element_type!r}: one of {', '.join(KINDS)}")
    return found
