"""Where every flow of the fluid network stands, and what its compiled loops share.

A flow is *pending* until it starts, *in transit* until its last byte has left, and *over* once its end is known: its
latency later, and for a fed flow no sooner than its parents allow. An end is known at or before it comes.

Axes: F flow, J link, C (flow, child) pair, K group of flows, A some of the flows, B block of them, H pending flow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moecast.compiled import inner
from moecast.sim.network.maxmin import PAIR, ROW, Crossings, Records, empty_links
from moecast.sim.program import Float, Int

# Flows whose last bytes leave within this fraction of the clock of each other leave together: 64 roundings.
SIMULTANEOUS = 2.0**-46

# A flow: what was asked; its start and end, or the earliest that the parents seen so far allow; how many parents have
# not started; how many are not over, and one more until its own last byte has left.
FLOW = np.dtype(
    [
        ("bytes", "f8"),
        ("latency", "f8"),
        ("feed_delay", "f8"),
        ("feed_tail", "f8"),
        ("group", "i8"),
        ("start", "f8"),
        ("end", "f8"),
        ("unstarted", "i8"),
        ("unended", "i8"),
    ],
    align=True,
)
# Within a tolerance, of a link: its flows in transit, the sum of their shares, and the most that was; and of one that
# stands for a part of the network, how many flows are in transit there.
HELD = np.dtype([("flows", "i8"), ("weight", "f8"), ("summed", "f8"), ("members", "i8")], align=True)
GROUP = np.dtype([("end", "f8"), ("open", "i8")], align=True)  # the latest end so far; flows that are not over
START = np.dtype([("time", "f8"), ("flow", "i8")], align=True)

# Places in `counts`.
TRANSIT, PENDING, ENDED, UNEVEN, SOON, GONE, RESIDUE = range(7)
# Places in `clock`.
NOW, LEAST, TOLERANCE, DUE, OPENED, PATIENCE, WIDTH = range(7)
BLOCK = 64  # flows in transit whose first last byte is known together
TOLD = np.inf  # stands in `since_F` of a flow in transit whose end has been told, within a tolerance
ASKED = -1  # stands in `unstarted` once a flow is pending, so that nobody starts it again
# Which rates are out of date.
EVEN, SOME, ALL = 0, 1, 2

PER_FLOW = (
    "flow_F", "rate_F", "fair_F", "last_F", "left_F", "since_F", "place_F", "transit_A", "filled_A", "first_B",
    "again_A", "soon_A", "pending_H",
)  # fmt: skip


class Net(NamedTuple):
    """All flows that were ever added, and where each of them stands."""

    capacity_J: Float
    on: Crossings
    held_J: Records  # within a tolerance: who is in transit on each link
    root_J: Int  # on the way to the link that stands for the part of the network
    flow_F: Records
    child_offsets_F1: Int
    child_C: Int
    group_K: Records
    rate_F: Float
    fair_F: Float  # the rates just filled; `OVER` once a flow is, caps before rates are filled
    last_F: Float  # when the last byte will have left at this rate
    left_F: Float  # bytes still to leave, at since_F
    since_F: Float
    transit_A: Int  # exact: in the order in which their rates were filled; who left stays until they are again
    filled_A: Float  # exact: the rates of those in transit_A, as they were filled
    first_B: Float  # when the first last byte of each block of those in transit_A leaves
    place_F: Int  # within a tolerance: a link in its part of the network
    again_A: Int  # scratch: those whose rates are filled again
    soon_A: Int  # those whose last bytes leave next, in order; of the first of them they have left
    pending_H: Records  # heap of starts
    stack_C: Int  # scratch
    ended_K: Int  # groups that ended in this call
    # How many are in transit, are pending, ended in this call; which rates are out of date; how many leave next, and of
    # how many of those the last byte has left; how many of those in transit have been told to have ended.
    counts: Int
    # Now; the rate below which none changed since rates were last shared; the tolerance; until when rates hold, within
    # it; when the window opened, how long flows that start have to wait at the most, and how wide the last window was.
    clock: Float


def empty_net(capacity_J: Float, tolerance: float) -> Net:
    """Make a network without flows."""
    links = len(capacity_J)
    return Net(
        capacity_J=capacity_J,
        on=Crossings(
            offsets_F1=np.zeros(1, np.int64),
            pair_X=np.zeros(0, PAIR),
            link_J=empty_links(capacity_J),
            row_Q=np.zeros(0, ROW),
            slot_X=np.zeros(0, np.int32),
            slot_share_X=np.zeros(0),
            queue_J=np.zeros(links, np.int64),
            rising_A=np.zeros(0, np.int64),
            state_F=np.zeros(0, np.uint8),
        ),
        held_J=np.zeros(links, HELD),
        root_J=np.arange(links),
        flow_F=np.zeros(0, FLOW),
        child_offsets_F1=np.zeros(1, np.int64),
        child_C=np.zeros(0, np.int64),
        group_K=np.zeros(0, GROUP),
        rate_F=np.zeros(0),
        fair_F=np.zeros(0),
        last_F=np.zeros(0),
        left_F=np.zeros(0),
        since_F=np.zeros(0),
        transit_A=np.zeros(0, np.int64),
        filled_A=np.zeros(0),
        first_B=np.zeros(0),
        place_F=np.zeros(0, np.int64),
        again_A=np.zeros(0, np.int64),
        soon_A=np.zeros(0, np.int64),
        pending_H=np.zeros(0, START),
        stack_C=np.zeros(1, np.int64),
        ended_K=np.zeros(0, np.int64),
        counts=np.zeros(RESIDUE + 1, np.int64),
        clock=np.array([0.0, np.inf, tolerance, 0.0, 0.0, 0.0, 0.0]),
    )


def with_room(net: Net, sizes: dict[str, int]) -> Net:
    """Let the arrays hold so many flows (F), pairs (X), rows (Q), children (C) and groups (K)."""
    flows, on = sizes["F"], net.on
    on = on._replace(
        offsets_F1=_grown(on.offsets_F1, flows + 1),
        pair_X=_grown(on.pair_X, sizes["X"]),
        slot_X=_grown(on.slot_X, sizes["X"]),
        slot_share_X=_grown(on.slot_share_X, sizes["X"]),
        rising_A=_grown(on.rising_A, flows),
        state_F=_grown(on.state_F, flows),
        row_Q=_grown(on.row_Q, sizes["Q"]),
    )
    room = {name: sizes[name[-1]] for name in ("child_C", "group_K", "ended_K")}
    room |= dict.fromkeys(PER_FLOW, flows)
    room |= {"child_offsets_F1": flows + 1, "stack_C": sizes["C"] + 1}
    return net._replace(on=on, **{name: _grown(getattr(net, name), size) for name, size in room.items()})


def _grown(array: Records, size: int) -> Records:
    if size <= len(array):
        return array
    bigger = np.empty(max(size, 2 * len(array)), array.dtype)
    bigger[: len(array)] = array
    return bigger


@inner
def note_first(net: Net, begin: int) -> None:
    """Note when the first of each block of those in transit, from the block of a place on, leaves."""
    first, end = np.inf, net.counts[TRANSIT]
    for a in range(begin // BLOCK * BLOCK, end):
        first = min(first, net.last_F[net.transit_A[a]])
        if a % BLOCK == BLOCK - 1 or a == end - 1:
            net.first_B[a // BLOCK], first = first, np.inf


@inner
def look_ahead(net: Net) -> None:
    """List the first flows to leave, of blocks whose first is noted."""
    first, n, end = np.inf, 0, net.counts[TRANSIT]
    for b in range(-(-end // BLOCK)):
        first = min(first, net.first_B[b])
    together = first * (1 + SIMULTANEOUS)
    for b in range(-(-end // BLOCK) if first < np.inf else 0):
        if net.first_B[b] > together:
            continue
        for a in range(b * BLOCK, min(end, (b + 1) * BLOCK)):
            if net.last_F[net.transit_A[a]] <= together:
                net.soon_A[n] = net.transit_A[a]
                n += 1
    sort_soon(net, n)


@inner
def sort_soon(net: Net, n: int) -> None:
    """Order those that leave next as they do."""
    net.counts[SOON], net.counts[GONE] = n, 0
    if n > 1:
        last_A, soon_A = np.empty(n), net.soon_A[:n].copy()
        for a in range(n):
            last_A[a] = net.last_F[soon_A[a]]
        order_A = np.argsort(last_A)
        for a in range(n):
            net.soon_A[a] = soon_A[order_A[a]]
