"""What pools that compute prompts and answers apart did, and what moved between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moecast.sim.serving.kv_moves import KvMoves
from moecast.sim.serving.records import PoolTimes
from moecast.sim.serving.workers import Workers
from moecast.units import format_bytes, format_percent, format_s

MUCH = 0.1
"""Part of the time from which a wait is called what limits."""
FULL = 0.9
"""Part of the time from which a link, or a pool, is called always at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolServed:
    """One pool of a run.

    Parameters
    ----------
    gpus, instances, ranks
        GPUs in all; instances that step by themselves; attention-DP ranks of each.
    tp, ep
        Of each instance.
    kv_blocks, block_tokens, kv_peak, preemptions
        Blocks of a rank's cache, tokens of each, the part of them used at the most, and how often a
        request lost its.
    """

    name: str
    gpus: int
    instances: int
    ranks: int
    tp: int
    ep: int
    kv_blocks: int
    block_tokens: int
    kv_peak: float
    preemptions: int

    @classmethod
    def of(cls, name: str, workers: Workers) -> PoolServed:
        """Sum a pool up."""
        times, limits = workers.pool.times, workers.limits
        return cls(
            name=name,
            gpus=workers.gpus,
            instances=workers.count,
            ranks=workers.pool.ranks,
            tp=workers.plan.tp,
            ep=workers.plan.ep,
            kv_blocks=limits.kv_blocks,
            block_tokens=limits.block_tokens,
            kv_peak=times.kv_peak / limits.kv_blocks,
            preemptions=times.preemptions,
        )

    @property
    def shown(self) -> str:
        """In a line."""
        layout = f"{self.gpus} GPUs: {self.instances} x {self.ranks} ranks (tp {self.tp}, ep {self.ep})"
        used = format_percent(self.kv_peak)
        return f"{layout}; {self.kv_blocks:,} blocks of {self.block_tokens} tokens a rank, at most {used} used"


@dataclass(frozen=True, slots=True, kw_only=True)
class KvMoved:
    """Keys that moved from one pool to the other.

    Parameters
    ----------
    requests, bytes, token_bytes
        How many requests' keys, in all and of each token on each GPU that gets them.
    mean_s, longest_s
        From start to arrival.
    held_mean_s, for_seats
        Waited before, until the rank that answers had room; and whether for sequences' places more
        often than blocks.
    busiest_link
        Part of the time for which the busiest link had to send at its full rate.
    """

    requests: int
    bytes: float
    token_bytes: float
    mean_s: float
    longest_s: float
    held_mean_s: float
    for_seats: bool
    busiest_link: float

    @classmethod
    def of(cls, moves: KvMoves, held_s: list[float], decode: PoolTimes, duration_s: float) -> KvMoved:
        """Sum up what moved."""
        times_s = moves.times_s or [0.0]
        return cls(
            requests=len(moves.times_s),
            bytes=moves.bytes,
            token_bytes=moves.token_bytes,
            mean_s=float(np.mean(times_s)),
            longest_s=max(times_s),
            held_mean_s=float(np.mean(held_s or [0.0])),
            for_seats=decode.refused_for_seats > decode.refused_for_blocks,
            busiest_link=moves.busiest_s() / duration_s if duration_s else 0.0,
        )

    @property
    def shown(self) -> str:
        """In a line."""
        took = f"{format_s(self.mean_s)} mean, {format_s(self.longest_s)} longest"
        held = f"held back {format_s(self.held_mean_s)} before"
        link = f"busiest link at work {format_percent(self.busiest_link)} of the time"
        return f"{format_bytes(round(self.bytes))} of {self.requests:,} requests: {took}; {held}; {link}"


def limited_apart(shares: Mapping[str, float], moved: KvMoved, held: float) -> str:
    """In a word what limits two pools; `held`: prompts that were held back at a time, in the mean."""
    if moved.busiest_link > FULL:
        return "network: keys between the pools"
    if held > MUCH:
        return "sequences that may run in the decode pool" if moved.for_seats else "KV cache of the decode pool"
    if shares["prefill: requests wait for KV blocks"] > MUCH:
        return "KV cache of the prefill pool"
    if shares["prefill: iterations with prompts"] > FULL:
        return "prefill"
    if min(shares["prefill: idle"], shares["decode: idle"]) > 1 / 2:
        return "arrivals: both pools idle most of the time"
    return "decode"
