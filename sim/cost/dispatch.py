"""Seconds of expert-parallel dispatch and combine inside one NVLink domain, for tokens that choose evenly.

Each phase of a library is one function of the tokens of a rank, with its own parameters:

- **low latency** (DeepEP): a message per choice. `groups` = ⌈E / SMs⌉ experts share an SM, ⌈E /
  groups⌉ SMs work: start + E · expert + tokens / SMs · token + choices' bytes / (part · r)
- **normal** (DeepEP): a copy per distinct rank, carried by the SMs that it is given; b bytes of a
  copy:
  start + b · wide + max(tokens / SMs · (token + copies · (copy + b · byte)), bytes / (part · r)), a
  soft maximum
- **symmetric memory** (TensorRT-LLM): a copy per distinct rank, its own included:
  start + ranks · rank + max(tokens · token, bytes / (part · r)), a soft maximum; `part` is another
  one where the ranks stand in several hosts of the domain
- **hosted**: one of the above that an engine launches from the host: max(host, scale · kernel), a
  soft maximum

Bytes of a copy are given: FP8 dispatch carries hidden · (1 + 4/128), bf16 2 · hidden
(deepseek-ai/DeepEP).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.entries import Entries, Entry, newest, read_entries, the_entry
from moecast.sim.cost.formulas import check_positive, soft_maximum

Float = npt.NDArray[np.float64]

SOFT = 4.0
"""How sharp the soft maxima of dispatch are."""
SEVERAL_HOSTS = 4
"""GPUs of a host of an NVL72: more ranks stand in several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LowLatencyParameters:
    """One phase of the low-latency kernels.

    Parameters
    ----------
    start_s, expert_s, token_s
        Before anything, for each expert of the group, and for each token of an SM.
    part
        Of the link's nominal rate.

    Raises
    ------
    ValueError
        A number that is not above 0 and finite.
    """

    start_s: float
    expert_s: float
    token_s: float
    part: float

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalParameters:
    """One phase of the normal kernels.

    Parameters
    ----------
    start_s, wide_s
        Before anything, and for each byte of a copy.
    token_s, copy_s, byte_s
        Of one SM, for each token, for each copy, and for each byte of a copy.
    part
        Of the link's nominal rate.

    Raises
    ------
    ValueError
        A number that is not above 0 and finite.
    """

    start_s: float
    wide_s: float
    token_s: float
    copy_s: float
    byte_s: float
    part: float

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class SymmetricParameters:
    """One phase of kernels in symmetric memory.

    Parameters
    ----------
    start_s, rank_s, token_s
        Before anything, for each rank, and for each token.
    near_part, far_part
        Of the link's nominal rate: inside a host, and between hosts of a domain.

    Raises
    ------
    ValueError
        A number that is not above 0 and finite.
    """

    start_s: float
    rank_s: float
    token_s: float
    near_part: float
    far_part: float

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class HostedParameters:
    """A phase that an engine launches from its host.

    Parameters
    ----------
    host_s
        The least that its calls take: the host's time, not a kernel's.
    scale
        How much longer than the library's kernels its own take.

    Raises
    ------
    ValueError
        A number that is not above 0 and finite.
    """

    host_s: float
    scale: float

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class FarLowLatencyParameters:
    """What low-latency kernels add between nodes to the time of their bytes on a NIC.

    Parameters
    ----------
    start_s, copy_s
        Before anything, and for each copy that leaves.

    Raises
    ------
    ValueError
        A number that is not above 0 and finite.
    """

    start_s: float
    copy_s: float

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class FarNormalParameters:
    """What normal kernels add between nodes, where copies go over a relay.

    Parameters
    ----------
    start_s, host_s
        Before anything, the exchange of counts included, and for each node of the group.
    relay
        How much more a copy inside a node costs its sender's SMs than in kernels that have no
        relays.

    Raises
    ------
    ValueError
        A number that is not above 0 and finite.
    """

    start_s: float
    host_s: float
    relay: float

    def __post_init__(self) -> None:
        check_positive(self)


def distinct_ranks(ranks: npt.ArrayLike, choices: npt.ArrayLike) -> Float:
    """How many ranks hold an expert of a token that chooses evenly and independently, its own rank included."""
    n = np.asarray(ranks, np.float64)
    found: Float = n * (1 - (1 - 1 / n) ** np.asarray(choices, np.float64))
    return found


def working_sms(experts: npt.ArrayLike, sms: int) -> Float:
    """SMs at work in low-latency kernels, which give each the same number of experts (deepseek-ai/DeepEP)."""
    e = np.asarray(experts, np.float64)
    working: Float = np.ceil(e / np.ceil(e / sms))
    return working


def low_latency_seconds(
    parameters: LowLatencyParameters,
    *,
    tokens: npt.ArrayLike,
    choices: npt.ArrayLike,
    experts: npt.ArrayLike,
    ranks: npt.ArrayLike,
    copy_bytes: npt.ArrayLike,
    link_Bps: float,
    sms: int,
) -> Float:
    """Seconds of a phase of the low-latency kernels; arrays broadcast against each other.

    Parameters
    ----------
    tokens, choices
        Of one rank, and of one token.
    experts, ranks
        Of the group.
    copy_bytes
        Of one copy.
    link_Bps, sms
        Nominal rate of a GPU's NVLink, one direction, and its SMs.
    """
    p, t, n = parameters, np.asarray(tokens, np.float64), np.asarray(ranks, np.float64)
    e = np.asarray(experts, np.float64)
    working = working_sms(e, sms)
    sent = t * np.asarray(choices, np.float64) * np.asarray(copy_bytes, np.float64) * (n - 1) / n
    seconds: Float = p.start_s + e * p.expert_s + t / working * p.token_s + sent / (p.part * link_Bps)
    return seconds


def sm_seconds_of_copy(
    parameters: NormalParameters, *, choices: npt.ArrayLike, ranks: npt.ArrayLike, copy_bytes: npt.ArrayLike
) -> Float:
    """Seconds of one SM for each copy that leaves: its own, and its part of the token's and of those that stay."""
    p, n = parameters, np.asarray(ranks, np.float64)
    each_s = p.token_s / distinct_ranks(n, choices) + p.copy_s + np.asarray(copy_bytes, np.float64) * p.byte_s
    seconds: Float = n / (n - 1) * each_s
    return seconds


def normal_seconds(
    parameters: NormalParameters,
    *,
    tokens: npt.ArrayLike,
    choices: npt.ArrayLike,
    ranks: npt.ArrayLike,
    copy_bytes: npt.ArrayLike,
    communication_sms: npt.ArrayLike,
    link_Bps: float,
) -> Float:
    """Seconds of a phase of the normal kernels; arrays broadcast against each other (see `low_latency_seconds`)."""
    p, t, n = parameters, np.asarray(tokens, np.float64), np.asarray(ranks, np.float64)
    copies, each_bytes = distinct_ranks(n, choices), np.asarray(copy_bytes, np.float64)
    each_s = p.token_s + copies * (p.copy_s + each_bytes * p.byte_s)
    carried = t / np.asarray(communication_sms, np.float64) * each_s
    sent = t * copies * (n - 1) / n * each_bytes / (p.part * link_Bps)
    return p.start_s + each_bytes * p.wide_s + soft_maximum(carried, sent, SOFT)


def symmetric_seconds(
    parameters: SymmetricParameters,
    *,
    tokens: npt.ArrayLike,
    choices: npt.ArrayLike,
    ranks: npt.ArrayLike,
    copy_bytes: npt.ArrayLike,
    link_Bps: float,
) -> Float:
    """Seconds of a phase in symmetric memory; arrays broadcast against each other (see `low_latency_seconds`)."""
    p, t, n = parameters, np.asarray(tokens, np.float64), np.asarray(ranks, np.float64)
    part = np.where(n > SEVERAL_HOSTS, p.far_part, p.near_part)
    sent = t * distinct_ranks(n, choices) * np.asarray(copy_bytes, np.float64) / (part * link_Bps)
    return p.start_s + n * p.rank_s + soft_maximum(t * p.token_s, sent, SOFT)


def hosted_seconds(parameters: HostedParameters, kernel_s: npt.ArrayLike) -> Float:
    """Seconds of a phase whose kernel alone takes `kernel_s`, launched from the host."""
    scaled = parameters.scale * np.asarray(kernel_s, np.float64)
    return soft_maximum(np.full_like(scaled, parameters.host_s), scaled, SOFT)


FORMS = {
    form.__name__: form
    for form in (
        LowLatencyParameters,
        NormalParameters,
        SymmetricParameters,
        HostedParameters,
        FarLowLatencyParameters,
        FarNormalParameters,
    )
}
"""Dataclasses of parameters by their names."""


@cache
def all_parameters() -> tuple[Entry[Any], ...]:
    """All fitted parameters; the engine is a library, or engine/library where it is called from its host."""
    return read_entries("dispatch", lambda item: FORMS[item["form"]])


@cache
def load_parameters() -> Entries[Any]:
    """Fitted parameters by GPU, library and phase."""
    return newest(all_parameters())


def find_parameters(gpu: str, library: str, phase: str) -> Entry[Any]:
    """The parameters of a GPU, library and phase (see `the_entry`)."""
    return the_entry(load_parameters(), gpu, library, phase)
