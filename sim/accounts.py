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


def busy_seconds(exchange: Exchange, *, enter_G: Float, leave_G: Float, start_F: Float, end_F: Float) -> Float:
    """How long each rank [G] of an exchange was busy between entering and leaving it.

    Busy is the union of its setup and of the times, from start to end, of the flows that it sends, receives or waits
    for. The rest of its stay is idle.
    """
    flows = exchange.flows
    nothing = np.zeros(0, np.int32), np.zeros(0), np.zeros(0)
    return busy(
        flows.source_rank_F, flows.destination_rank_F, flows.waiter_F, start_F, end_F, nothing, enter_G, leave_G,
        setup_start(exchange, enter_G), exchange.setup_s,
    )  # fmt: skip


def setup_start(exchange: Exchange, enter_G: Float) -> Float:
    """When each rank's setup begins [G]: as it enters, or, behind a barrier, as the last of its EP group does."""
    if not exchange.barrier:
        return enter_G
    last_K = np.full(int(exchange.group_G.max(initial=0)) + 1, -np.inf)
    np.maximum.at(last_K, exchange.group_G, enter_G)
    return last_K[exchange.group_G]


@njit(cache=True, nogil=True)
def busy(
    source_F: Int32, destination_F: Int32, waiter_F: Int32, start_F: Float, end_F: Float, more: tuple[Int32, Float, Float],
    enter_G: Float, leave_G: Float, setup_from_G: Float, setup_s: float,
) -> Float:  # fmt: skip
    """Compiled form of `busy_seconds`; `more` gives further busy times: ranks, starts and ends."""
    busy_G = np.zeros(len(enter_G))
    until_G = enter_G.copy()  # all busy time before this has been counted
    for g in range(len(enter_G)):
        _count(g, setup_from_G[g], setup_from_G[g] + setup_s, leave_G, until_G, busy_G)
    for v in np.argsort(np.concatenate((start_F, more[1]))):
        i = v - len(start_F)
        if i >= 0:
            _count(more[0][i], more[1][i], more[2][i], leave_G, until_G, busy_G)
            continue
        _count(source_F[v], start_F[v], end_F[v], leave_G, until_G, busy_G)
        _count(destination_F[v], start_F[v], end_F[v], leave_G, until_G, busy_G)
        if waiter_F[v] >= 0 and waiter_F[v] != destination_F[v]:
            _count(waiter_F[v], start_F[v], end_F[v], leave_G, until_G, busy_G)
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
