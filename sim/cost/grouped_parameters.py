"""Constants of routed experts by GPU, engine and element type, and how those of an engine are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from moecast.sim.cost.entries import Entry, find_entry, load_entries, newest
from moecast.sim.cost.gpus import gpu_key

if TYPE_CHECKING:
    from moecast.topology import Hardware

# TensorRT-LLM's own kernel of few tokens, timed where another engine calls it through FlashInfer
# (Blackwell).
SHARED, SHARED_KERNEL = {("trtllm", "fp8_block"): "sglang"}, "flashinfer_trtllm"
# a kernel that an engine takes where a rank has all experts, whole or by width, and only there
WHOLE = "/whole"
# a second kernel that an engine has for few tokens, beside its usual one of the type
LOW_LATENCY = "/low latency"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertType:
    """How experts of a type are stored and multiplied."""

    rates: tuple[str, ...]  # the first that the GPU has
    weight_bytes: float
    input_bytes: float


TYPES: Mapping[str, ExpertType] = {
    "bf16": ExpertType(rates=("bf16",), weight_bytes=2, input_bytes=2),
    "fp8": ExpertType(rates=("fp8", "bf16"), weight_bytes=1, input_bytes=1),
    "fp8_block": ExpertType(rates=("fp8", "bf16"), weight_bytes=1, input_bytes=1 + 4 / 128),
    "nvfp4": ExpertType(rates=("fp4", "bf16"), weight_bytes=0.5625, input_bytes=0.5625),
    "mxfp4": ExpertType(rates=("fp8", "bf16"), weight_bytes=0.53125, input_bytes=1.03125),
    "mxfp4_bf16": ExpertType(rates=("bf16",), weight_bytes=0.53125, input_bytes=2),
    "int4_wo": ExpertType(rates=("bf16",), weight_bytes=0.5156, input_bytes=2),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupedParameters:
    """Constants of one GPU's, engine's and element type's routed experts.

    Parameters
    ----------
    tiles
        `best`: of all heights the one that is fastest for the loads; `default`: Triton's default
        pair; `padded`: 128 rows, as DeepGEMM's contiguous layout has them.
    launch_s
        Time of a layer without work: all its kernels.
    peak_part, memory_part
        Reached parts of the dense peak and of the memory's bandwidth.
    large_part
        `default`: the same of the memory under the large tiles.
    operand_Bps
        Rate at which one SM takes in operands (out of L2).
    wave_s
        Prologue and tail of a wave.
    softness
        p of the norm that joins tiles and traffic.
    row_traffic, seen_traffic
        How often the inner and outer values of a row, and of a pair that the kernels are shown,
        move through memory.
    slot_s
        Seconds per slot, with rows or without.

    Raises
    ------
    ValueError
        A number out of its range, or unknown tiles.
    """

    tiles: str
    launch_s: float
    peak_part: float
    memory_part: float
    large_part: float
    operand_Bps: float
    wave_s: float
    softness: float
    row_traffic: float
    seen_traffic: float
    slot_s: float

    def __post_init__(self) -> None:
        if self.tiles not in ("best", "default", "padded"):
            raise ValueError(f"tiles = {self.tiles!r}: best, default or padded")
        for item in fields(self)[1:]:
            value = getattr(self, item.name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{item.name} = {value!r} must be at least 0 and finite")
        for name, least in (("softness", 1.0), ("peak_part", 1e-3), ("memory_part", 1e-3), ("large_part", 1e-3)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be at least {least:g}")
        if self.operand_Bps <= 0:
            raise ValueError(f"operand_Bps = {self.operand_Bps!r} must be positive")


@cache
def load_parameters() -> Mapping[tuple[str, str, str], Entry[GroupedParameters]]:
    """All fitted parameters, by GPU, engine and element type; of several versions of an engine the newest."""
    return newest(load_entries("grouped", GroupedParameters))


@lru_cache(maxsize=1024)
def _find(gpu: str, engine: str, element_type: str, whole: bool) -> tuple[Entry[GroupedParameters], ...]:
    entries = load_parameters()
    found = find_entry(entries, gpu, engine, element_type)
    if found is None:
        others = _find(gpu, engine, "bf16", whole)
        return tuple(replace(other, transferred=f"type bf16 for {element_type}") for other in others)
    if whole and (own := entries.get((found.gpu, found.engine, element_type + WHOLE))) is not None:
        return (replace(own, transferred=found.transferred),)
    beside = entries.get((found.gpu, found.engine, element_type + LOW_LATENCY))
    if beside is None and (found.engine, element_type) in SHARED:
        other = entries.get((found.gpu, SHARED[found.engine, element_type], element_type))
        beside = other if other is not None and SHARED_KERNEL in other.note else None
    return (found,) if beside is None else (found, replace(beside, transferred=found.transferred))


def find_parameters(
    hardware: Hardware, *, engine: str, element_type: str, whole: bool = False
) -> tuple[Entry[GroupedParameters], ...]:
    """The kernels that an engine chooses among; `transferred` says what they stand in for.

    `whole`: for ranks that have all experts, of which vLLM has a kernel of its own on Hopper.

    The engine's own on the nearest GPU, else the neutral ones; a type that no table has takes those
    of bf16.

    Raises
    ------
    ValueError
        An unknown element type.
    """
    if element_type not in TYPES:
        raise ValueError(f"element type {element_type!r}: one of {', '.join(TYPES)}")
    return _find(gpu_key(hardware), engine, element_type, whole)
