"""Seconds of a collective inside one NVLink domain: NCCL's, and the all-reduce kernels of serving engines.

NCCL has several protocols for each algorithm and models the time of each as start + steps · hop +
bytes / rate, of which it takes the least (NVIDIA/nccl, src/graph/tuning.cc). So do we, with the
numbers fitted on measured rows rather than taken from there. n ranks, x bytes as nccl-tests count
them, link rate r:

    ring:     s = n - 1 steps (all-gather, reduce-scatter) or 2 (n - 1) (all-reduce), v = (s + own) / n · x bytes
              min over LL, LL128, Simple of  start + s · hop + v / (part · r)
    switch:   start + (1 + 1/n) x / (part · r), all-reduce of more than two ranks
    pairs:    all-to-all, v = (n - 1 + own) / n · x; min of  start + x / n / (part · r)  and  start + v / (part · r)

`own` is what a rank's own share costs, which is copied, too. Engines' kernels in symmetric memory
read all of every peer's buffer (one shot) or a share of it and send the sum (two shots), and leave
to NCCL what is larger. Without a CUDA graph the host takes at least `host_s`, and x bytes are
copied into the registered buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.entries import Entries, Entry, newest, read_entries, the_entry
from moecast.sim.cost.formulas import check_positive

Float = npt.NDArray[np.float64]

RINGS = ("all-gather", "reduce-scatter", "all-reduce")
MEASURED_OPERATIONS = (*RINGS, "all-to-all")

# What a rank's own bytes cost beside a peer's: kernels on 2, 4 and 8 GPUs then reach the same part
# of a link.
OWN_OF_ONE = 0.5
OWN_OF_TWO = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NcclParameters:
    """What NCCL's collectives cost on one GPU.

    Parameters
    ----------
    low_start_s, low_hop_s, low_part
        LL: before the first byte, of each step, and the part of the link's nominal rate that data
        get.
    mid_start_s, mid_hop_s, mid_part
        LL128.
    high_start_s, high_hop_s, high_part
        Simple.
    switch_start_s, switch_part
        The all-reduce that the switch adds up (NVLS).
    own
        A rank's own share, in bytes on the wire for a byte.
    pair_start_s, pair_part
        All-to-all of few bytes, LL: its rate is one peer's.
    pairs_start_s, pairs_part, pairs_own
        All-to-all of many bytes.

    Raises
    ------
    ValueError
        A number that is not above 0 and finite.
    """

    low_start_s: float
    low_hop_s: float
    low_part: float
    mid_start_s: float
    mid_hop_s: float
    mid_part: float
    high_start_s: float
    high_hop_s: float
    high_part: float
    switch_start_s: float
    switch_part: float
    own: float
    pair_start_s: float
    pair_part: float
    pairs_start_s: float
    pairs_part: float
    pairs_own: float
    pairs_ramp_bytes: float

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class AllReduceParameters:
    """What an engine's own all-reduce kernels cost on one GPU.

    Parameters
    ----------
    start_s, rank_s
        A launch and a barrier of two ranks, and what each other rank adds; two shots need two
        barriers.
    one_part, two_part
        The part of the link's nominal rate, in one shot and in two.
    host_s
        Least time between two of them without a CUDA graph: the host's, not the kernel's.

    Raises
    ------
    ValueError
        A number that is not above 0 and finite.
    """

    start_s: float
    rank_s: float
    one_part: float
    two_part: float
    host_s: float

    def __post_init__(self) -> None:
        check_positive(self)


def nccl_seconds(
    parameters: NcclParameters, operation: str, ranks: npt.ArrayLike, size_bytes: npt.ArrayLike, *, link_Bps: float
) -> Float:
    """Seconds of NCCL's collective inside one domain; monotone in ranks' steps and bytes.

    Parameters
    ----------
    operation
        One of `MEASURED_OPERATIONS`.
    ranks, size_bytes
        Broadcast against each other; bytes as nccl-tests count them (see
        `moecast.sim.collectives.operations`).
    link_Bps
        Nominal rate of a GPU's NVLink, one direction.

    Raises
    ------
    ValueError
        There is no such operation.
    """
    n, x = np.broadcast_arrays(np.asarray(ranks, np.float64), np.asarray(size_bytes, np.float64))
    if operation == "all-to-all":
        return _pairs(parameters, n, x, link_Bps)
    if operation not in RINGS:
        raise ValueError(f"operation = {operation!r}: one of {', '.join(MEASURED_OPERATIONS)}")
    p, steps = parameters, (2 if operation == "all-reduce" else 1) * (n - 1)
    passed = (steps + p.own) / n * x / link_Bps
    low = p.low_start_s + steps * p.low_hop_s + passed / p.low_part
    mid = p.mid_start_s + steps * p.mid_hop_s + passed / p.mid_part
    high = p.high_start_s + steps * p.high_hop_s + passed / p.high_part
    least = np.minimum(np.minimum(low, mid), high)
    if operation != "all-reduce":
        return least
    added = p.switch_start_s + (1 + 1 / n) * x / link_Bps / p.switch_part
    return np.where(n > 2, np.minimum(least, added), least)


def _pairs(p: NcclParameters, n: Float, x: Float, link_Bps: float) -> Float:
    few = p.pair_start_s + x / n / (p.pair_part * link_Bps)
    passed = (n - 1 + p.pairs_own) / n * x
    many = p.pairs_start_s + (passed + np.sqrt(p.pairs_ramp_bytes * passed)) / (p.pairs_part * link_Bps)
    least: Float = np.minimum(few, many)
    return least


def engine_all_reduce_seconds(
    parameters: AllReduceParameters,
    nccl: NcclParameters,
    ranks: npt.ArrayLike,
    size_bytes: npt.ArrayLike,
    *,
    link_Bps: float,
    memory_Bps: float,
    eager: npt.ArrayLike = False,
) -> Float:
    """Seconds of an engine's all-reduce inside one domain: its kernels', or NCCL's where that is done first.

    Parameters
    ----------
    ranks, size_bytes, eager
        Broadcast against each other. `eager`: launched by the host one by one, not by a CUDA graph.
    link_Bps, memory_Bps
        Nominal rates.
    """
    n, x = np.broadcast_arrays(np.asarray(ranks, np.float64), np.asarray(size_bytes, np.float64))
    p = parameters
    one = p.start_s + (n - 1) * p.rank_s + (n - 1 + OWN_OF_ONE) * x / (p.one_part * link_Bps)
    two = 2 * p.start_s + (n - 1) * p.rank_s + (2 * (n - 1) + OWN_OF_TWO) / n * x / (p.two_part * link_Bps)
    kernel = np.minimum(np.minimum(one, two), nccl_seconds(nccl, "all-reduce", n, x, link_Bps=link_Bps))
    by_host = np.maximum(p.host_s, kernel + 2 * x / memory_Bps)
    seconds: Float = np.where(np.asarray(eager, bool), by_host, kernel)
    return seconds


FORMS = {form.__name__: form for form in (NcclParameters, AllReduceParameters)}
"""Dataclasses of parameters by their names."""


@cache
def all_parameters() -> tuple[Entry[Any], ...]:
    """All fitted parameters of NCCL ("nccl") and of engines' all-reduces, by GPU, engine and range of versions."""
    return read_entries("collectives", lambda item: FORMS[item["form"]])


@cache
def load_parameters(version: str | None = None) -> Entries[Any]:
    """Those of a version, or the newest."""
    return newest(all_parameters(), version)


def find_parameters(gpu: str, engine: str, *, version: str | None = None) -> Entry[Any]:
    """The parameters of a GPU and an engine, or "nccl" (see `the_entry`)."""
    return the_entry(load_parameters(version), gpu, engine)
