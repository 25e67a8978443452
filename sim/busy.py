"""What a step amounted to, once it is known when everything began and ended: busy seconds, and units on each link.

Axes: R rank of an exchange, F flow, J link, X (flow, link) pair.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moecast.compiled import entry, inner
from moecast.sim.program import Exchange, Float, Flows, Int, Int32


def add_link_units(flows: Flows, bytes_F: Float, units_J: Float) -> None:
    """Add what so many bytes of each flow [F] put on each link [J]: the sum of bytes times share, in place."""
    _add_link_units(bytes_F, flows.offsets_F1, flows.link_X, flows.share_X, units_J)


def add_link_bytes(flows: Flows, n_real: int, bytes_J: Float) -> None:
    """Add the bytes that pass each link [J], in place.

    All of a flow's pass its issue link, whose units are seconds.

    The first `n_real` links are the cluster's, the others issue links.
    """
    part_X = np.where(flows.link_X < n_real, flows.share_X, 1.0)
    _add_link_units(flows.bytes_F, flows.offsets_F1, flows.link_X, part_X, bytes_J)


class FlowRanks(NamedTuple):
    """Who sends, receives and waits for each flow of an exchange [F]; what is kept of flows that have been run."""

    source_F: Int32
    destination_F: Int32
    waiter_F: Int32

    @classmethod
    def of(cls, flows: Flows) -> FlowRanks:
        """Take them from flows."""
        return cls(source_F=flows.source_rank_F, destination_F=flows.destination_rank_F, waiter_F=flows.waiter_F)


def busy_seconds(
    exchange: Exchange,
    ranks: FlowRanks,
    *,
    enter_R: Float,
    leave_R: Float,
    setup_R: Float,
    start_F: Float,
    end_F: Float,
    order_F: Int | None = None,
) -> Float:
    """How long each rank [R] of an exchange was busy between entering and leaving it.

    Busy is the union of its setup, from `setup_R` on, and of the times, from start to end, of the
    flows that it sends, receives or waits for. In the rest of its stay it waits for somebody else.
    `order_F` is that of `start_F`, where it is known.
    """
    order_F = np.argsort(start_F) if order_F is None else order_F
    busy_R: Float = _busy(order_F, ranks, start_F, end_F, enter_R, leave_R, setup_R, exchange.setup_s)
    return busy_R


def setup_start(exchange: Exchange, enter_R: Float) -> Float:
    """When each rank's setup begins [R]: as it enters, or, behind a barrier, as the last of its EP group does."""
    if not exchange.barrier:
        return enter_R
    last_K = np.full(int(exchange.group_R.max(initial=0)) + 1, -np.inf)
    np.maximum.at(last_K, exchange.group_R, enter_R)
    return last_K[exchange.group_R]


def wait_for_starters(exchange: Exchange, place_R: Int, last_R: Int) -> None:
    """Raise, in place, to the last of those who have to enter before what each rank waits for can start [R].

    `place_R` is when they enter, and so is what is raised: the place in the order of all.
    """
    flows, sizes = exchange.flows.sized()
    _wait(
        flows.source_rank_F,
        sizes.waiter_F,
        sizes.bytes_F,
        flows.parent_offsets_F1,
        flows.parent_R,
        place_R,
        last_R,
    )


@entry
def _wait(
    source_F: Int32,
    waiter_F: Int32,
    bytes_F: Float,
    parents_F1: Int,
    parent_R: Int32,
    place_R: Int,
    last_R: Int,
) -> None:
    place_F, changed = np.full(len(source_F), -1, np.int64), True
    while changed:  # as often as relays follow one another
        changed = False
        for f in range(len(source_F)):
            if bytes_F[f] < 0:
                continue
            place = -1
            if parents_F1[f] == parents_F1[f + 1]:
                place = place_R[source_F[f]]
            for r in range(parents_F1[f], parents_F1[f + 1]):
                if bytes_F[parent_R[r]] >= 0:
                    place = max(place, place_F[parent_R[r]])
            if place != place_F[f]:
                place_F[f], changed = place, len(parent_R) > 0
    for f in range(len(source_F)):
        if waiter_F[f] >= 0 and bytes_F[f] >= 0:
            last_R[waiter_F[f]] = max(last_R[waiter_F[f]], place_F[f])


@entry
def _busy(
    order_F: Int,
    ranks: FlowRanks,
    start_F: Float,
    end_F: Float,
    enter_R: Float,
    leave_R: Float,
    setup_R: Float,
    setup_s: float,
) -> Float:
    source_F, destination_F, waiter_F = ranks
    busy_R = np.zeros(len(enter_R))
    until_R = enter_R.copy()  # all busy time before this has been counted
    for g in range(len(enter_R)):
        _count(g, setup_R[g], setup_R[g] + setup_s, leave_R, until_R, busy_R)
    # In order of their start: then one time says up to where a rank's busy time is counted,
    # whatever overlaps. Of flows that one rank starts together it sends until the last ends.
    sender, begun, over = -1, 0.0, 0.0
    for f in order_F:
        source, start, end = source_F[f], start_F[f], end_F[f]
        if source == sender and start == begun:
            over = max(over, end)
        else:
            if sender >= 0:
                _count(sender, begun, over, leave_R, until_R, busy_R)
            sender, begun, over = source, start, end
        if destination_F[f] != source:
            _count(destination_F[f], start, end, leave_R, until_R, busy_R)
        if waiter_F[f] >= 0 and waiter_F[f] != destination_F[f]:
            _count(waiter_F[f], start, end, leave_R, until_R, busy_R)
    if sender >= 0:
        _count(sender, begun, over, leave_R, until_R, busy_R)
    return busy_R


@inner
def _count(g: int, start: float, end: float, leave_R: Float, until_R: Float, busy_R: Float) -> None:
    start, end = max(start, until_R[g]), min(end, leave_R[g])
    if end > start:
        busy_R[g] += end - start
        until_R[g] = end


@entry
def _add_link_units(bytes_F: Float, offsets_F1: Int, link_X: Int32, share_X: Float, units_J: Float) -> None:
    for f in range(len(bytes_F)):
        for x in range(offsets_F1[f], offsets_F1[f + 1]):
            units_J[link_X[x]] += bytes_F[f] * share_X[x]
