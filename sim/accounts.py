"""What a step amounted to, once it is known when everything began and ended: busy seconds, and units on each link.

Axes: G rank, F flow, J link, X (flow, link) pair.
"""

from __future__ import annotations

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
    return program.on_every_link(total_J)


def busy_seconds(
    exchange: Exchange, *, enter_G: Float, leave_G: Float, setup_G: Float, start_F: Float, end_F: Float
) -> Float:
    """How long each rank [G] of an exchange was busy between entering and leaving it.

    Busy is the union of its setup, from `setup_G` on, and of the times, from start to end, of the flows that it sends,
    receives or waits for. In the rest of its stay it waits for somebody else.
    """
    flows = exchange.flows
    busy_G: Float = _busy(
        np.argsort(start_F), flows.source_rank_F, flows.destination_rank_F, flows.waiter_F, start_F, end_F,
        enter_G, leave_G, setup_G, exchange.setup_s,
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
    order_F: Int, source_F: Int32, destination_F: Int32, waiter_F: Int32, start_F: Float, end_F: Float,
    enter_G: Float, leave_G: Float, setup_G: Float, setup_s: float,
) -> Float:  # fmt: skip
    busy_G = np.zeros(len(enter_G))
    until_G = enter_G.copy()  # all busy time before this has been counted
    for g in range(len(enter_G)):
        _count(g, setup_G[g], setup_G[g] + setup_s, leave_G, until_G, busy_G)
    for f in order_F:
        _count(source_F[f], start_F[f], end_F[f], leave_G, until_G, busy_G)
        if destination_F[f] != source_F[f]:
            _count(destination_F[f], start_F[f], end_F[f], leave_G, until_G, busy_G)
        if waiter_F[f] >= 0 and waiter_F[f] != destination_F[f]:
            _count(waiter_F[f], start_F[f], end_F[f], leave_G, until_G, busy_G)
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
