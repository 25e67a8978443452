"""Where every flow of the fluid network stands, and what its compiled loops share.

A flow is *pending* until it starts, *in transit* until its last byte has left, and *over* once its end is known: its
latency later, and for a fed flow no sooner than its parents allow. An end is known at or before it comes.

Axes: F flow, J link, C (flow, child) pair, K group of flows, A some of the flows, H pending flow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moecast.sim.compiled import inner
from moecast.sim.network.maxmin import Crossings, Records
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
# Within a tolerance, of a link: its flows in transit, the sum of their shares, and the most that it was; and of one that
# stands for a part of the network, how many flows are in transit there.
HELD = np.dtype([("flows", "i8"), ("weight", "f8"), ("summed", "f8"), ("members", "i8")], align=True)
GROUP = np.dtype([("end", "f8"), ("open", "i8")], align=True)  # the latest end so far; flows that are not over
START = np.dtype([("time", "f8"), ("flow", "i8")], align=True)

# Places in `counts`.
TRANSIT, PENDING, ENDED, UNEVEN, SOON, GONE, RESIDUE = range(7)
# Places in `clock`.
NOW, LEAST, TOLERANCE, DUE, OPENED, PATIENCE, WIDTH = range(7)
TOLD = np.inf  # stands in `since_F` of a flow in transit whose end has been told, within a tolerance
ASKED = -1  # stands in `unstarted` once a flow is pending, so that nobody starts it again
# Which rates are out of date.
EVEN, SOME, ALL = 0, 1, 2


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
    transit_A: Int
    place_F: Int  # where in transit_A; within a tolerance: a link in its part of the network
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


@inner
def look_ahead(net: Net) -> None:
    """List the first flows to leave."""
    first, n = np.inf, 0
    for a in range(net.counts[TRANSIT]):
        first = min(first, net.last_F[net.transit_A[a]])
    for a in range(net.counts[TRANSIT]):
        f = net.transit_A[a]
        if net.last_F[f] <= first * (1 + SIMULTANEOUS):
            net.soon_A[n] = f
            n += 1
    sort_soon(net, n if first < np.inf else 0)


@inner
def sort_soon(net: Net, n: int) -> None:
    """Order those that leave next as they do."""
    net.counts[SOON], net.counts[GONE] = n, 0
    if n > 1:
        net.soon_A[:n] = net.soon_A[:n][np.argsort(net.last_F[net.soon_A[:n]])]
