"""What a whole module of multi-head latent attention costs: its matrix products, its kernel, and what they leave out.

    seconds = constant + gemm_part * products + core_part * kernel + moved / memory

Products are of DeepSeek-V3's sizes (arXiv 2412.19437): into the compressed query and the latent
vector, up from the query, in prefill up from the latent vector, in decode the two batched ones of
the absorbed form, and out. What the parts do not hold, norms, rotation, quantisation of
activations, copies and writing the cache, is the constant (their launches) and the moving.
docs/cost/mla.md has the errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.cost import attention, gemm, mla_bmm
from moecast.sim.cost.attention_decode import decode_seconds
from moecast.sim.cost.attention_prefill import ELEMENT_BYTES, checked, prefill_seconds
from moecast.sim.cost.entries import NEUTRAL, Entry, find_entry, load_entries, newest
from moecast.sim.cost.formulas import check_positive
from moecast.sim.cost.gpus import gpu_key

if TYPE_CHECKING:
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

HIDDEN, QUERY_RANK, LATENT, ROPE, NOPE, VALUE = 7168, 1536, 512, 64, 128, 128


@dataclass(frozen=True, kw_only=True, slots=True)
class MlaModuleParameters:
    """What one engine's module is beside its parts.

    Parameters
    ----------
    constant_s
        Time whatever the tokens: launches of what is no product and no kernel of attention.
    gemm_part, core_part
        What the products, and the kernel, take here of what their families say.
    hidden_moves, head_moves
        How often a token's hidden vector, and its queries of all heads, move through memory beside.

    Raises
    ------
    ValueError
        A number out of its range.
    """

    constant_s: float
    gemm_part: float
    core_part: float
    hidden_moves: float
    head_moves: float

    def __post_init__(self) -> None:
        check_positive(self, may_be_zero=("constant_s", "hidden_moves", "head_moves"))


@dataclass(frozen=True, kw_only=True, slots=True)
class MlaParts:
    """Seconds of the products and of the kernel of modules. Axes: R module."""

    products_R: Float
    core_R: Float


def mla_parts(
    hardware: Hardware,
    *,
    engine: str,
    phase: str,
    gemm_type: str,
    cache_type: str,
    batch: npt.ArrayLike,
    tokens: npt.ArrayLike,
    keys: npt.ArrayLike,
    heads: npt.ArrayLike,
    warm: bool = False,
) -> MlaParts:
    """The parts of modules by their families: GEMM, batched products, kernels of latent attention.

    Parameters
    ----------
    phase
        `prefill`, `decode`, or `absorbed`: prompts in decode's form, as vLLM takes short ones.
    gemm_type, cache_type
        Element type of the weights (`moecast.sim.cost.gemm.TYPES`); of the cache, "bf16" or "fp8".
    batch, tokens, keys
        Sequences; new tokens of each; keys before them (prefill) or in all (decode).
    heads
        Query heads on this rank.
    warm
        Whether caches that fit stay in L2, as in a benchmark.
    """
    b, t, k, h = checked(batch=batch, tokens=tokens, keys=keys, heads=heads)
    linear = gemm.find_parameters(hardware, engine=engine, element_type=gemm_type).parameters
    matrices: list[tuple[npt.ArrayLike, npt.ArrayLike]] = [
        (HIDDEN, QUERY_RANK + LATENT + ROPE),
        (QUERY_RANK, h * (NOPE + ROPE)),
        (h * VALUE, HIDDEN),
    ]
    if phase == "prefill":
        matrices.append((LATENT, h * (NOPE + VALUE)))
    products = np.zeros(b.shape)
    for inner, outer in matrices:
        products += gemm.gemm_seconds(linear, hardware, b * t, outer, inner, element_type=gemm_type)
    form = "prefill" if phase == "prefill" else "decode"
    kernel = attention.find_latent(hardware, engine=engine, phase=form, cache_type=cache_type).parameters
    if phase == "prefill":
        core = prefill_seconds(
            kernel, hardware, b, t, heads=h, kv_heads=h, head_dim=NOPE + ROPE, value_dim=VALUE, context=k
        )
        return MlaParts(products_R=products, core_R=core)
    batched = mla_bmm.find_parameters(hardware, engine=engine, element_type="bf16").parameters
    tiles = gemm.find_parameters(hardware, engine=engine, element_type="bf16").parameters
    for inner, outer in ((NOPE, LATENT), (LATENT, VALUE)):
        products += mla_bmm.mla_bmm_seconds(batched, tiles, hardware, b * t, h, inner=inner, outer=outer)
    core = decode_seconds(
        kernel,
        hardware,
        b,
        k,
        heads=h,
        kv_heads=1,
        head_dim=LATENT + ROPE,
        value_dim=LATENT,
        key_bytes=(LATENT + ROPE) * attention.key_bytes(cache_type),
        queries=t,
        warm=warm,
    )
    return MlaParts(products_R=products, core_R=core)


def module_seconds(
    parameters: MlaModuleParameters,
    hardware: Hardware,
    parts: MlaParts,
    *,
    batch: npt.ArrayLike,
    tokens: npt.ArrayLike,
    heads: npt.ArrayLike,
) -> Float:
    """Time of whole modules, given their parts; 0 without tokens. Never falls when an amount of work grows."""
    b, t, h = checked(batch=batch, tokens=tokens, heads=heads)
    p = parameters
    seconds = p.gemm_part * parts.products_R + p.core_part * parts.core_R
    return np.where(b * t > 0, seconds + beside_seconds(parameters, hardware, b * t, heads=h), 0.0)


def beside_seconds(
    parameters: MlaModuleParameters, hardware: Hardware, tokens_G: npt.ArrayLike, *, heads: npt.ArrayLike
) -> Float:
    """What a module takes beside its products and its kernel; 0 without tokens."""
    tokens, h = np.asarray(tokens_G, np.float64), np.asarray(heads, np.float64)
    moves = HIDDEN * parameters.hidden_moves + h * (NOPE + ROPE) * parameters.head_moves
    moved_s = tokens * moves * ELEMENT_BYTES / hardware.memory_Bps
    seconds: Float = np.where(tokens > 0, parameters.constant_s + moved_s, 0.0)
    return seconds


@cache
def all_parameters() -> tuple[Entry[MlaModuleParameters], ...]:
    """All fitted parameters; the kind is "<phase> <gemm type>/<cache type> [kernel]"."""
    return load_entries("mla_module", MlaModuleParameters)


@cache
def load_parameters() -> Mapping[tuple[str, str, str], Entry[MlaModuleParameters]]:
    """Fitted parameters by GPU, engine and kind, of the newest versions."""
    return newest(all_parameters())


@lru_cache(maxsize=512)
def _find(gpu: str, engine: str, phase: str, gemm_type: str, cache_type: str) -> Entry[MlaModuleParameters]:
    for name in dict.fromkeys((engine, NEUTRAL)):
        own = {key: entry for key, entry in load_parameters().items() if key[1] == name}
        pairs = product(dict.fromkeys((gemm_type, "fp8_block", "bf16")), dict.fromkeys((cache_type, "bf16", "fp8")))
        for wanted, kept in pairs:
            found = find_entry(own, gpu, name, f"{phase} {wanted}/{kept}")
            if found is not None:
                notes = [found.transferred, f"engine {name}" if name != engine else ""]
                notes.append(f"types {wanted}/{kept}" if (wanted, kept) != (gemm_type, cache_type) else "")
                return replace(found, transferred=", ".join(filter(None, notes)))
    raise ValueError(f"no parameters of modules of {phase}")


def find_parameters(
    hardware: Hardware, *, engine: str, phase: str, gemm_type: str, cache_type: str
) -> Entry[MlaModuleParameters]:
    """The parameters of an engine's modules on a GPU or its nearest relative.

    `transferred` says what they stand for.

    A pair of element types that no table has takes the likest.

    Raises
    ------
    ValueError
        An unknown phase.
    """
    return _find(gpu_key(hardware), engine, phase, gemm_type, cache_type)
