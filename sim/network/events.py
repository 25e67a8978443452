"""The fluid network's clock, compiled: from one start or last byte to the next, rates max-min fair in between.

A flow is *pending* until it starts, *in transit* until its last byte has left, and *over* once its end is known: its
latency later, and for a fed flow no sooner than its parents allow. An end is known at or before it comes.

Axes: F flow, J link, X (flow, link) pair, C (flow, child) pair, K group of flows, A some of the flows, H pending flow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moecast.sim.compiled import entry, inner
from moecast.sim.network.maxmin import Records, fill, join, part, release
from moecast.sim.program import Float, Int

# Flows whose last bytes leave within this fraction of the clock of each other leave together: 64 roundings.
SIMULTANEOUS = 2.0**-46

# A flow: what was asked; its start and end, or the earliest that the parents seen so far allow; how many parents have
# not started; how many are not over, and one more until its own last byte has left.
FLOW = np.dtype(
    [
        ("bytes", "f8"), ("latency", "f8"), ("feed_delay", "f8"), ("feed_tail", "f8"), ("group", "i8"),
        ("start", "f8"), ("end", "f8"), ("unstarted", "i8"), ("unended", "i8"),
    ],
    align=True,
)  # fmt: skip
GROUP = np.dtype([("end", "f8"), ("open", "i8")], align=True)  # the latest end so far; flows that are not over
START = np.dtype([("time", "f8"), ("flow", "i8")], align=True)

# Places in `counts`.
TRANSIT, PENDING, ENDED, UNEVEN = 0, 1, 2, 3
# Places in `clock`.
NOW, LEAST, TOLERANCE, DUE = 0, 1, 2, 3
ASKED = -1  # stands in `unstarted` once a flow is pending, so that nobody starts it again
# Which rates are out of date.
EVEN, SOME, ALL = 0, 1, 2


class Net(NamedTuple):
    """All flows that were ever added, and where each of them stands."""

    capacity_J: Float
    link_J: Records
    pair_X: Records
    offsets_F1: Int
    flow_F: Records
    child_offsets_F1: Int
    child_C: Int
    group_K: Records
    rate_F: Float
    fair_F: Float  # the rates just filled
    last_F: Float  # when the last byte will have left at this rate
    left_F: Float  # bytes still to leave, at since_F
    since_F: Float
    transit_A: Int
    again_A: Int  # scratch: those whose rates are filled again
    pending_H: Records  # heap of starts
    queue_J: Int  # scratch
    stack_C: Int  # scratch
    ended_K: Int  # groups that ended in this call
    counts: Int  # how many are in transit, are pending, ended in this call; which rates are out of date
    # Now; the rate of the slowest flow that left since rates were last shared; by what part of the age of the oldest
    # flow they may be out of date; until when they may be.
    clock: Float


@entry
def submit_all(net: Net, first: int, n: int, flow_A: Int, at_A: Float) -> int:
    """Let flows, counted from `first`, start at their times, no sooner than now.

    Returns -1, or the place of one that cannot start: none of the `n` flows, started before, started by others, or at
    no finite time. None of them starts then.
    """
    for a in range(len(flow_A)):
        f = first + flow_A[a]
        if not (0 <= f < n and net.flow_F[f].unstarted == 0 and -np.inf < at_A[a] < np.inf):
            for b in range(a):
                net.flow_F[first + flow_A[b]].unstarted = 0
            return a
        net.flow_F[f].unstarted = ASKED
    for a in range(len(flow_A)):
        _submit(net, first + flow_A[a], max(at_A[a], net.clock[NOW]))
    return -1


@entry
def next_event(net: Net) -> float:
    """When the next flow starts, or the next last byte leaves; infinite when nothing is on its way."""
    if net.counts[UNEVEN] != EVEN and net.clock[NOW] >= net.clock[DUE]:
        _share_out(net)
    time = net.pending_H[0].time if net.counts[PENDING] else np.inf
    if net.counts[UNEVEN] != EVEN:
        time = min(time, net.clock[DUE])
    for a in range(net.counts[TRANSIT]):
        time = min(time, net.last_F[net.transit_A[a]])
    return float(time)


@entry
def advance(net: Net, until: float) -> float:
    """Move the clock to `until`, or less far: no further than the end of the first group that ends on the way.

    The groups that became known to end stand in `ended_K`, none of their ends before the clock. Returns the time of
    the next event.
    """
    net.counts[ENDED] = 0
    while True:
        time = next_event(net)
        if time >= until:
            break
        net.clock[NOW] = max(net.clock[NOW], time)
        before = net.counts[ENDED]
        now = net.clock[NOW] * (1 + SIMULTANEOUS)
        _finish(net, now)
        _begin(net, now)
        for k in range(before, net.counts[ENDED]):
            until = min(until, net.group_K[net.ended_K[k]].end)
    if until < np.inf:
        net.clock[NOW] = max(net.clock[NOW], until)
    return float(time)


@inner
def _share_out(net: Net) -> None:
    """Bring the rates up to date, and tell every flow whose rate changed when its last byte will leave.

    Flows that left make no difference to those that were slower than every one of them: filling goes through the same
    states up to the rate of the slowest that left, and only from there on it is done again. On all-to-all traffic
    this is about an eighth of the flows. A flow that starts has everything done again.

    With a tolerance this waits a little after the last time, so that flows which leave or start meanwhile share one
    filling: what the former give back lies idle, and the latter do not move. Nobody is given more than a link has.
    """
    n, now, least = 0, net.clock[NOW], 0.0
    oldest = now
    if net.counts[UNEVEN] == ALL:
        net.link_J["left"][:] = net.capacity_J
        for a in range(net.counts[TRANSIT]):
            net.fair_F[net.transit_A[a]] = 0.0
    else:
        least = net.clock[LEAST] * (1 - SIMULTANEOUS)
    for a in range(net.counts[TRANSIT]):
        f = net.transit_A[a]
        if net.rate_F[f] >= least:
            net.again_A[n] = f
            n += 1
    fill(net.again_A, n, least, net.offsets_F1, net.pair_X, net.link_J, net.queue_J, net.fair_F)
    for a in range(n):
        f = net.again_A[a]
        if net.fair_F[f] != net.rate_F[f]:
            net.left_F[f] = max(0.0, net.left_F[f] - net.rate_F[f] * (now - net.since_F[f]))
            net.since_F[f] = now
            net.rate_F[f] = net.fair_F[f]
            net.last_F[f] = now + net.left_F[f] / net.rate_F[f]
    for a in range(net.counts[TRANSIT]):
        oldest = min(oldest, net.flow_F[net.transit_A[a]].start)
    net.counts[UNEVEN] = EVEN
    net.clock[LEAST] = np.inf
    net.clock[DUE] = now + net.clock[TOLERANCE] * (now - oldest)


@inner
def _finish(net: Net, now: float) -> None:
    """Take out of transit what has left."""
    n = net.counts[TRANSIT]
    for a in range(n - 1, -1, -1):
        f = net.transit_A[a]
        if net.last_F[f] > now:
            continue
        n -= 1
        net.transit_A[a] = net.transit_A[n]
        net.counts[TRANSIT] = n
        net.counts[UNEVEN] = max(net.counts[UNEVEN], SOME)
        net.clock[LEAST] = min(net.clock[LEAST], net.rate_F[f])
        part(f, net.offsets_F1, net.pair_X, net.link_J)
        release(f, net.offsets_F1, net.pair_X, net.link_J, net.rate_F)
        net.rate_F[f] = 0.0
        _last_byte_left(net, f, net.last_F[f])


@inner
def _begin(net: Net, now: float) -> None:
    """Start the pending flows whose time has come, and thereby those they feed without delay."""
    while net.counts[PENDING] and net.pending_H[0].time <= now:
        time, f = net.pending_H[0].time, net.pending_H[0].flow
        _pop(net)
        flow = net.flow_F[f]
        flow.start = time
        for c in range(net.child_offsets_F1[f], net.child_offsets_F1[f + 1]):
            child = net.flow_F[net.child_C[c]]
            child.start = max(child.start, time + child.feed_delay)
            child.unstarted -= 1
            if child.unstarted == 0:
                child.unstarted = ASKED
                _submit(net, net.child_C[c], child.start)
        if flow.bytes == 0 or net.offsets_F1[f] == net.offsets_F1[f + 1]:
            _last_byte_left(net, f, time)
            continue
        net.since_F[f], net.left_F[f], net.last_F[f] = net.clock[NOW], flow.bytes, np.inf
        net.transit_A[net.counts[TRANSIT]] = f
        net.counts[TRANSIT] += 1
        net.counts[UNEVEN] = ALL
        join(f, net.offsets_F1, net.pair_X, net.link_J)


@inner
def _last_byte_left(net: Net, f: int, time: float) -> None:
    """Work out which flows' ends this makes known: its own, and along the chains that it feeds."""
    net.flow_F[f].end = max(net.flow_F[f].end, time + net.flow_F[f].latency)
    net.stack_C[0] = f
    depth = 1
    while depth:
        depth -= 1
        f = net.stack_C[depth]
        flow = net.flow_F[f]
        flow.unended -= 1
        if flow.unended:
            continue
        _count_off(net, flow.group, flow.end)
        for c in range(net.child_offsets_F1[f], net.child_offsets_F1[f + 1]):
            child = net.flow_F[net.child_C[c]]
            child.end = max(child.end, flow.end + child.feed_tail)
            net.stack_C[depth] = net.child_C[c]
            depth += 1


@inner
def _count_off(net: Net, k: int, end: float) -> None:
    if k < 0:
        return
    group = net.group_K[k]
    group.end = max(group.end, end)
    group.open -= 1
    if group.open == 0:
        net.ended_K[net.counts[ENDED]] = k
        net.counts[ENDED] += 1


@inner
def _submit(net: Net, flow: int, time: float) -> None:
    heap, i = net.pending_H, net.counts[PENDING]
    net.counts[PENDING] += 1
    while i and _earlier(time, flow, heap[(i - 1) // 2]):
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i].time, heap[i].flow = time, flow


@inner
def _pop(net: Net) -> None:
    net.counts[PENDING] -= 1
    heap, size = net.pending_H, net.counts[PENDING]
    time, flow = heap[size].time, heap[size].flow
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and _earlier(heap[child + 1].time, heap[child + 1].flow, heap[child]):
            child += 1
        if _earlier(time, flow, heap[child]):
            break
        heap[i] = heap[child]
        i = child
    heap[i].time, heap[i].flow = time, flow


@inner
def _earlier(time: float, flow: int, other: Any) -> bool:
    return bool(time < other.time or (time == other.time and flow < other.flow))
