"""What a step amounted to, once it is known when everything began and ended: busy seconds, and units on each link.

Axes: G rank, F flow, J link, X (flow, link) pair, V event that keeps up to three ranks busy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moecast.sim.compiled import entry, inner
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
    exchange: Exchange, *, enter_G: Float, leave_G: Float, setup_G: Float, start_F: Float, end_F: Float,
    more: Sequence[tuple[Float, Float]] = (),
) -> Float:  # fmt: skip
    """How long each rank [G] of an exchange was busy between entering and leaving it.

    Busy is the union of its setup, from `setup_G` on, and of the times, from start to end, of the flows that it sends,
    receives or waits for. The rest of its stay is idle. `more` gives each rank further busy times, starts and ends.
    """
    flows, ranks = exchange.flows, np.arange(len(enter_G), dtype=np.int32)
    source_V, destination_V, waiter_V = (
        np.concatenate((rank_F, *[ranks] * len(more)))
        for rank_F in (flows.source_rank_F, flows.destination_rank_F, flows.waiter_F)
    )
    start_V = np.concatenate((start_F, *(start_G for start_G, _ in more)))
    end_V = np.concatenate((end_F, *(end_G for _, end_G in more)))
    busy_G: Float = _busy(
        np.argsort(start_V), source_V, destination_V, waiter_V, start_V, end_V, enter_G, leave_G, setup_G,
        exchange.setup_s,
    )  # fmt: skip
    return busy_G


def setup_start(exchange: Exchange, enter_G: Float) -> Float:
    """When each rank's setup begins [G]: as it enters, or, behind a barrier, as the last of its EP group does."""
    if not exchange.barrier:
        return enter_G
    last_K = np.full(int(exchange.group_G.max(initial=0)) + 1, -np.inf)
    np.maximum.at(last_K, exchange.group_G, enter_G)
    return last_K[exchange.group_G]


@entry
def _busy(
    order_V: Int, source_V: Int32, destination_V: Int32, waiter_V: Int32, start_V: Float, end_V: Float,
    enter_G: Float, leave_G: Float, setup_G: Float, setup_s: float,
) -> Float:  # fmt: skip
    busy_G = np.zeros(len(enter_G))
    until_G = enter_G.copy()  # all busy time before this has been counted
    for g in range(len(enter_G)):
        _count(g, setup_G[g], setup_G[g] + setup_s, leave_G, until_G, busy_G)
    for v in order_V:
        _count(source_V[v], start_V[v], end_V[v], leave_G, until_G, busy_G)
        if destination_V[v] != source_V[v]:
            _count(destination_V[v], start_V[v], end_V[v], leave_G, until_G, busy_G)
        if waiter_V[v] >= 0 and waiter_V[v] != destination_V[v]:
            _count(waiter_V[v], start_V[v], end_V[v], leave_G, until_G, busy_G)
    return busy_G


@inner
def _count(g: int, start: float, end: float, leave_G: Float, until_G: Float, busy_G: Float) -> None:
    start, end = max(start, until_G[g]), min(end, leave_G[g])
    if end > start:
        busy_G[g] += end - start
        until_G[g] = end


@entry
def _add_link_bytes(bytes_F: Float, offsets_F1: Int, link_X: Int32, share_X: Float, total_J: Float) -> None:
    for f in range(len(bytes_F)):
        for x in range(offsets_F1[f], offsets_F1[f + 1]):
            total_J[link_X[x]] += bytes_F[f] * share_X[x]
