"""What the kernels of linear attention cost: the short convolution, and the recurrence over states.

    convolution   launch + (moved^p + sequences^p)^(1/p)
    prefill       launch + (chunks of the longest chain^p + chunks and starts of all over the SMs^p)^(1/p)
    decode        launch + (items over the SMs^p + states in and out of memory^p)^(1/p)

Prefill takes tokens in chunks of 64: inside a chunk like attention, from chunk to chunk through the
state, one after the other. Sources: gated delta networks (arXiv 2412.06464),
flash-linear-attention; causal-conv1d. docs/cost/linear_attention.md has the parameters' errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.attention_prefill import checked
from moecast.sim.cost.entries import Entry, find_entry, newest, read_entries
from moecast.sim.cost.formulas import check_positive, soft_maximum
from moecast.sim.cost.gpus import L2_BYTES, gpu_key
from moecast.sim.cost.memory import moving_seconds

if TYPE_CHECKING:
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

CHUNK = 64
STATE_BYTES = 4.0  # float32
ELEMENT_BYTES = 2.0
UNIT = 128.0 * 128.0  # elements of the state of a measured head
KINDS = ("conv prefill", "conv decode", "state prefill", "state decode")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvParameters:
    """Constants of one engine's short convolution.

    Parameters
    ----------
    launch_s
        Time without work.
    moves
        How often channels of all tokens move through memory, in and out counted once each.
    cache_ratio
        Rate out of L2 over the memory's (benchmarks only).
    sequence_s
        Seconds of one SM that 128 channels of a sequence cost whatever its tokens.
    softness
        p of the norm.

    Raises
    ------
    ValueError
        A number out of its range.
    """

    launch_s: float
    moves: float
    cache_ratio: float
    sequence_s: float
    softness: float

    def __post_init__(self) -> None:
        check_positive(self, may_be_zero=("sequence_s",))
        _at_least_1(self, "softness", "cache_ratio")


@dataclass(frozen=True, kw_only=True, slots=True)
class StateParameters:
    """Constants of one engine's recurrence in prefill or in decode.

    Parameters
    ----------
    launch_s
        Time without work.
    chain_s
        Prefill: seconds of a chunk in the chain of one head.
    chunk_s
        Prefill: seconds of one SM for a chunk of a head.
    sequence_s
        Seconds of one SM for a head of a sequence, whatever its tokens; in decode all of it.
    memory_part, cache_ratio
        Decode: reached part of the memory's bandwidth; rate out of L2 over it (benchmarks only).
    softness
        p of the norm.

    Raises
    ------
    ValueError
        A number out of its range.
    """

    launch_s: float
    chain_s: float
    chunk_s: float
    sequence_s: float
    memory_part: float
    cache_ratio: float
    softness: float

    def __post_init__(self) -> None:
        check_positive(self, may_be_zero=("chain_s", "chunk_s", "sequence_s"))
        _at_least_1(self, "softness", "cache_ratio")


def _at_least_1(parameters: object, *names: str) -> None:
    for name in names:
        if getattr(parameters, name) < 1:
            raise ValueError(f"{name} = {getattr(parameters, name)!r} must be at least 1")


def conv_seconds(
    parameters: ConvParameters,
    hardware: Hardware,
    batch: npt.ArrayLike,
    length: npt.ArrayLike,
    *,
    channels: npt.ArrayLike,
    warm: bool = False,
) -> Float:
    """The short convolution over `batch` sequences of `length` new tokens; 0 without tokens or channels."""
    b, t, c = checked(batch=batch, length=length, channels=channels)
    moved_s = moving_seconds(
        2 * ELEMENT_BYTES * b * t * c * parameters.moves,
        memory_Bps=hardware.memory_Bps,
        cache_ratio=parameters.cache_ratio if warm else 1.0,
        l2_bytes=L2_BYTES[gpu_key(hardware)],
    )
    starts_s = b * c / 128 * parameters.sequence_s / hardware.sms
    return np.where(b * t * c > 0, parameters.launch_s + soft_maximum(moved_s, starts_s, parameters.softness), 0.0)


def state_seconds(
    parameters: StateParameters,
    hardware: Hardware,
    batch: npt.ArrayLike,
    length: npt.ArrayLike,
    *,
    phase: str,
    heads: npt.ArrayLike,
    key_dim: npt.ArrayLike,
    value_dim: npt.ArrayLike,
    warm: bool = False,
) -> Float:
    """The recurrence of `batch` sequences of `length` new tokens; 0 without tokens or heads.

    Parameters
    ----------
    phase
        `prefill`: by chunks; `decode`: the state is read and written once.
    heads, key_dim, value_dim
        Of the state on this rank, a matrix for each head.
    warm
        Whether states that fit stay in L2, as in a benchmark.
    """
    p = parameters
    b, t, h, k, v = checked(batch=batch, length=length, heads=heads, key_dim=key_dim, value_dim=value_dim)
    units = k * v / UNIT
    if phase == "prefill":
        chunks = np.ceil(t / CHUNK)
        work_s = b * h * units * (chunks * p.chunk_s + p.sequence_s) / hardware.sms
        joined = soft_maximum(work_s, chunks * units * p.chain_s, p.softness)
    else:
        states_s = moving_seconds(
            2 * STATE_BYTES * b * h * k * v,
            memory_Bps=hardware.memory_Bps * p.memory_part,
            cache_ratio=p.cache_ratio if warm else 1.0,
            l2_bytes=L2_BYTES[gpu_key(hardware)],
        )
        joined = soft_maximum(b * h * units * p.sequence_s / hardware.sms, states_s, p.softness)
    return np.where(b * t * h * units > 0, p.launch_s + joined, 0.0)


@cache
def all_parameters() -> tuple[Entry[Any], ...]:
    """All fitted parameters; the kind is one of `KINDS`."""
    return read_entries(
        "linear_attention", lambda item: ConvParameters if item["kind"].startswith("conv") else StateParameters
    )


@cache
def load_parameters() -> Mapping[tuple[str, str, str], Entry[Any]]:
    """Fitted parameters by GPU, engine and kind, of the newest versions."""
    return newest(all_parameters())


@lru_cache(maxsize=256)
def _find(gpu: str, engine: str, kind: str) -> Entry[Any] | None:
    return find_entry(load_parameters(), gpu, engine, kind)


def find_parameters(hardware: Hardware, *, engine: str, kind: str) -> Entry[Any]:
    """The parameters of an engine's kernel on a GPU or its nearest relative.

    `transferred` says what they stand for.

    Raises
    ------
    ValueError
        An unknown kind.
    """
    found = _find(gpu_key(hardware), engine, kind)
    if found is None:
        raise ValueError(f"kind {kind!r}: one of {', '.join(KINDS)}")
    return found
