"""The fluid network's clock, compiled: from one start or last byte to the next, rates max-min fair in between.

A flow is *pending* until it starts, *in transit* until its last byte has left, and *over* once its end is known: its
latency later, and for a fed flow no sooner than its parents allow. An end is known at or before it comes.

Axes: F flow, J link, X (flow, link) pair, C (flow, child) pair, K group of flows, A flow in transit, H pending flow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from moecast.sim.network.maxmin import Chains, Filling, fill, link_flow, unlink_flow
from moecast.sim.program import Float, Int, Int32

# Flows whose last bytes leave within this fraction of the clock of each other leave together: 64 roundings.
SIMULTANEOUS = 2.0**-46

# Places in `counts`, `clock`.
TRANSIT, PENDING, ENDED, UNEVEN = 0, 1, 2, 3


class Net(NamedTuple):
    """All flows that were ever added, and where each of them stands."""

    # What was asked.
    bytes_F: Float
    latency_F: Float
    delay_F: Float
    tail_F: Float
    group_F: Int
    offsets_F1: Int
    link_X: Int32
    share_X: Float
    child_offsets_F1: Int
    child_C: Int
    capacity_J: Float
    # Where each flow stands.
    start_F: Float  # of a pending fed flow: the earliest that the parents seen so far allow
    end_F: Float  # until it is over: the earliest that the parents seen so far allow
    unstarted_F: Int  # parents that have not started
    unended_F: Int  # parents that are not over, and 1 until its own last byte has left
    left_F: Float  # bytes still to leave, at since_F
    since_F: Float
    rate_F: Float
    fair_F: Float  # the rates just filled
    last_F: Float  # when the last byte will have left at this rate
    # The flows of each state.
    transit_A: Int
    time_H: Float
    pending_H: Int
    stack_F: Int
    chains: Chains
    filling: Filling
    open_K: Int  # flows of the group that are not over
    end_K: Float
    ended_K: Int  # groups that ended in this call
    counts: Int  # in transit, pending, ended groups, 1 if rates are out of date
    clock: Float  # one number


@njit(cache=True, nogil=True)
def submit(net: Net, flow: int, at: float) -> None:
    """Let a flow start at a time, no sooner than now."""
    i = net.counts[PENDING]
    net.counts[PENDING] += 1
    at = max(at, net.clock[0])
    while i and _earlier(at, flow, net.time_H[(i - 1) // 2], net.pending_H[(i - 1) // 2]):
        net.time_H[i], net.pending_H[i] = net.time_H[(i - 1) // 2], net.pending_H[(i - 1) // 2]
        i = (i - 1) // 2
    net.time_H[i], net.pending_H[i] = at, flow


@njit(cache=True, nogil=True)
def submit_all(net: Net, first: int, flow_A: Int, at_A: Float) -> None:
    """Let flows, counted from `first`, start at their times."""
    for a in range(len(flow_A)):
        submit(net, first + flow_A[a], at_A[a])


@njit(cache=True, nogil=True)
def next_event(net: Net) -> float:
    """When the next flow starts, or the next last byte leaves; infinite when nothing is on its way."""
    if net.counts[UNEVEN]:
        _share_out(net)
    time = net.time_H[0] if net.counts[PENDING] else np.inf
    for a in range(net.counts[TRANSIT]):
        time = min(time, net.last_F[net.transit_A[a]])
    return time


@njit(cache=True, nogil=True)
def advance(net: Net, until: float) -> int:
    """Move the clock to `until`, or less far: no further than the end of the first group that ends on the way.

    Returns how many groups are known to end; they stand in `ended_K`, and their ends in `end_K`, none before the clock.
    """
    net.counts[ENDED] = 0
    while True:
        time = next_event(net)
        if time >= until:
            break
        net.clock[0] = max(net.clock[0], time)
        before = net.counts[ENDED]
        now = net.clock[0] * (1 + SIMULTANEOUS)
        _finish(net, now)
        _begin(net, now)
        for k in range(before, net.counts[ENDED]):
            until = min(until, net.end_K[net.ended_K[k]])
    if until < np.inf:
        net.clock[0] = max(net.clock[0], until)
    return int(net.counts[ENDED])


@njit(cache=True, nogil=True)
def _share_out(net: Net) -> None:
    """Fill the rates, and tell every flow whose rate changed when its last byte will leave."""
    n, now = net.counts[TRANSIT], net.clock[0]
    fill(net.transit_A, n, net.offsets_F1, net.link_X, net.share_X, net.capacity_J, net.chains, net.filling, net.fair_F)
    for a in range(n):
        f = net.transit_A[a]
        if net.fair_F[f] != net.rate_F[f]:
            net.left_F[f] = max(0.0, net.left_F[f] - net.rate_F[f] * (now - net.since_F[f]))
            net.since_F[f] = now
            net.rate_F[f] = net.fair_F[f]
            net.last_F[f] = now + net.left_F[f] / net.rate_F[f]
    net.counts[UNEVEN] = 0


@njit(cache=True, nogil=True)
def _finish(net: Net, now: float) -> None:
    """Take out of transit what has left."""
    a = 0
    while a < net.counts[TRANSIT]:
        f = net.transit_A[a]
        if net.last_F[f] > now:
            a += 1
            continue
        net.counts[TRANSIT] -= 1
        net.counts[UNEVEN] = 1
        net.transit_A[a] = net.transit_A[net.counts[TRANSIT]]
        unlink_flow(f, net.offsets_F1, net.link_X, net.chains)
        net.left_F[f] = 0.0
        net.rate_F[f] = 0.0
        _last_byte_left(net, f, net.last_F[f])


@njit(cache=True, nogil=True)
def _begin(net: Net, now: float) -> None:
    """Start the pending flows whose time has come, and thereby those they feed without delay."""
    while net.counts[PENDING] and net.time_H[0] <= now:
        time, f = net.time_H[0], net.pending_H[0]
        _pop(net)
        net.start_F[f] = time
        for c in range(net.child_offsets_F1[f], net.child_offsets_F1[f + 1]):
            child = net.child_C[c]
            net.start_F[child] = max(net.start_F[child], time + net.delay_F[child])
            net.unstarted_F[child] -= 1
            if net.unstarted_F[child] == 0:
                submit(net, child, net.start_F[child])
        if net.bytes_F[f] == 0 or net.offsets_F1[f] == net.offsets_F1[f + 1]:
            net.left_F[f] = 0.0
            _last_byte_left(net, f, time)
            continue
        net.since_F[f] = net.clock[0]
        net.transit_A[net.counts[TRANSIT]] = f
        net.counts[TRANSIT] += 1
        net.counts[UNEVEN] = 1
        link_flow(f, net.offsets_F1, net.link_X, net.chains)


@njit(cache=True, nogil=True)
def _last_byte_left(net: Net, f: int, time: float) -> None:
    """Work out which flows' ends this makes known: its own, and along the chains that it feeds."""
    net.end_F[f] = max(net.end_F[f], time + net.latency_F[f])
    net.stack_F[0] = f
    depth = 1
    while depth:
        depth -= 1
        f = net.stack_F[depth]
        net.unended_F[f] -= 1
        if net.unended_F[f]:
            continue
        _count_off(net, net.group_F[f], net.end_F[f])
        for c in range(net.child_offsets_F1[f], net.child_offsets_F1[f + 1]):
            child = net.child_C[c]
            net.end_F[child] = max(net.end_F[child], net.end_F[f] + net.tail_F[child])
            net.stack_F[depth] = child
            depth += 1


@njit(cache=True, nogil=True)
def _count_off(net: Net, group: int, end: float) -> None:
    if group < 0:
        return
    net.end_K[group] = max(net.end_K[group], end)
    net.open_K[group] -= 1
    if net.open_K[group] == 0:
        net.ended_K[net.counts[ENDED]] = group
        net.counts[ENDED] += 1


@njit(cache=True, nogil=True)
def _pop(net: Net) -> None:
    net.counts[PENDING] -= 1
    size = net.counts[PENDING]
    time, flow = net.time_H[size], net.pending_H[size]
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and _earlier(
            net.time_H[child + 1], net.pending_H[child + 1], net.time_H[child], net.pending_H[child]
        ):
            child += 1
        if not _earlier(net.time_H[child], net.pending_H[child], time, flow):
            break
        net.time_H[i], net.pending_H[i] = net.time_H[child], net.pending_H[child]
        i = child
    net.time_H[i], net.pending_H[i] = time, flow


@njit(cache=True, nogil=True)
def _earlier(time: float, flow: int, other_time: float, other_flow: int) -> bool:
    return bool(time < other_time or (time == other_time and flow < other_flow))
