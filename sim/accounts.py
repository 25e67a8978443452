"""What a step amounted to, once it is known when everything began and ended: busy seconds, and units on each link.

Axes: G rank, F flow, J link, X (flow, link) pair, V event that keeps up to three ranks busy.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from moecast.sim.program import Exchange, Float, Int, Int32, StepProgram


def link_bytes(program: StepProgram) -> Float:
    """Units carried by each link over the step: the sum of bytes times share [J]."""
    total_J = np.zeros(len(program.capacity_J))
    for stage in program.stages:
        if isinstance(stage, Exchange):
            flows = stage.flows
            _add_link_bytes(flows.bytes_F, flows.offsets_F1, flows.link_X, flows.share_X, total_J)
    return total_J


def busy_seconds(
    exchange: Exchange, *, enter_G: Float, leave_G: Float, start_F: Float, end_F: Float,
    ports: tuple[Int, Float, Float] | None = None,
) -> Float:  # fmt: skip
    """How long each rank [G] of an exchange was busy between entering and leaving it.

    Busy is the union of its setup and of the times, from start to end, of the flows that it sends, receives or waits
    for. The rest of its stay is idle. `ports` adds more such times: ranks, starts and ends.
    """
    flows = exchange.flows
    rank_V = np.stack((flows.source_rank_F, flows.destination_rank_F, flows.waiter_F))
    if ports is not None:
        rank_V = np.concatenate((rank_V, np.broadcast_to(ports[0].astype(np.int32), (3, len(ports[0])))), axis=1)
        start_F, end_F = np.concatenate((start_F, ports[1])), np.concatenate((end_F, ports[2]))
    return _busy(rank_V, start_F, end_F, enter_G, leave_G, setup_start(exchange, enter_G), exchange.setup_s)


def setup_start(exchange: Exchange, enter_G: Float) -> Float:
    """When each rank's setup begins [G]: as it enters, or, behind a barrier, as the last of its EP group does."""
    if not exchange.barrier:
        return enter_G
    last_K = np.full(int(exchange.group_G.max(initial=0)) + 1, -np.inf)
    np.maximum.at(last_K, exchange.group_G, enter_G)
    return last_K[exchange.group_G]


@njit(cache=True, nogil=True)
def _busy(
    rank_V: Int32, start_V: Float, end_V: Float, enter_G: Float, leave_G: Float, setup_from_G: Float, setup_s: float
) -> Float:
    busy_G = np.zeros(len(enter_G))
    until_G = enter_G.copy()  # all busy time before this has been counted
    for g in range(len(enter_G)):
        _count(g, setup_from_G[g], setup_from_G[g] + setup_s, leave_G, until_G, busy_G)
    for v in np.argsort(start_V):
        for who in range(3):
            if rank_V[who, v] >= 0:
                _count(rank_V[who, v], start_V[v], end_V[v], leave_G, until_G, busy_G)
    return busy_G


@njit(cache=True, nogil=True)
def _count(g: int, start: float, end: float, leave_G: Float, until_G: Float, busy_G: Float) -> None:
    start, end = max(start, until_G[g]), min(end, leave_G[g])
    if end > start:
        busy_G[g] += end - start
        until_G[g] = end


@njit(cache=True, nogil=True)
def _add_link_bytes(bytes_F: Float, offsets_F1: Int, link_X: Int32, share_X: Float, total_J: Float) -> None:
    for f in range(len(bytes_F)):
        for x in range(offsets_F1[f], offsets_F1[f + 1]):
            total_J[link_X[x]] += bytes_F[f] * share_X[x]
