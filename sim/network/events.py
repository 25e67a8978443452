"""The fluid network's clock, compiled: from one start or last byte to the next, rates max-min fair in between.

With a tolerance, rates are means over windows of time (`moecast.sim.network.windows`).

Axes: F flow, J link, X (flow, link) pair, C (flow, child) pair, K group of flows, A some of the flows, B block of them,
H pending flow.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moecast.compiled import entry, inner
from moecast.sim.network.maxmin import OVER, fill, release
from moecast.sim.network.state import (
    ALL,
    ASKED,
    DUE,
    ENDED,
    EVEN,
    GONE,
    LEAST,
    NOW,
    PATIENCE,
    PENDING,
    RESIDUE,
    SIMULTANEOUS,
    SOME,
    SOON,
    TOLD,
    TOLERANCE,
    TRANSIT,
    UNEVEN,
    Net,
    look_ahead,
    note_first,
)
from moecast.sim.network.windows import enter, open_window
from moecast.sim.program import Float, Int


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


# `within` is the tolerance or None, and None leaves no trace of windows in what is compiled: a process compiles only
# what it uses, and windows take longer than all the rest.
@entry
def next_event(net: Net, within: float | None) -> float:
    """When the next flow starts, the next last byte leaves or a window ends; infinite when nothing is on its way."""
    if net.counts[UNEVEN] != EVEN and net.clock[NOW] >= net.clock[DUE]:
        if within is None:
            _share_out(net)
        else:
            open_window(net)
    return _next(net)


@entry
def advance(net: Net, until: float, within: float | None) -> float:
    """Move the clock to `until`, or less far: no further than the end of the first group that ends on the way.

    The groups that became known to end stand in `ended_K`, none of their ends before the clock. Returns the time of
    the next event.
    """
    net.counts[ENDED] = 0
    time = next_event(net, within)
    while time < until:
        until = _pass(net, time, until)
        time = next_event(net, within)
    if until < np.inf:
        net.clock[NOW] = max(net.clock[NOW], until)
    return float(time)


@inner
def _next(net: Net) -> float:
    time = net.pending_H[0].time if net.counts[PENDING] else np.inf
    if net.counts[UNEVEN] != EVEN:
        time = min(time, net.clock[DUE])
    if net.counts[GONE] < net.counts[SOON]:
        time = min(time, net.last_F[net.soon_A[net.counts[GONE]]])
    return float(time)


@inner
def _pass(net: Net, time: float, until: float) -> float:
    """Let happen what does at that time; until when, then, the clock may be moved."""
    net.clock[NOW] = max(net.clock[NOW], time)
    before = net.counts[ENDED]
    now = net.clock[NOW] * (1 + SIMULTANEOUS)
    _finish(net, now)
    _begin(net, now)
    for k in range(before, net.counts[ENDED]):
        until = min(until, net.group_K[net.ended_K[k]].end)
    return float(until)


@inner
def _share_out(net: Net) -> None:
    """Bring the rates up to date, and tell every flow whose rate changed when its last byte will leave.

    Flows that left make no difference to those that were slower than every one of them: filling goes through the same
    states up to the rate of the slowest that left, and only from there on it is done again. On all-to-all traffic
    this is about an eighth of the flows. A flow that starts has everything done again.
    """
    net.counts[SOON] = net.counts[GONE] = 0
    least = net.clock[LEAST] * (1 - SIMULTANEOUS)
    if net.counts[UNEVEN] == ALL:
        least = 0.0
        for j in range(len(net.capacity_J)):
            net.on.link_J[j].left = net.capacity_J[j]
        for a in range(net.counts[TRANSIT]):
            if net.fair_F[net.transit_A[a]] != OVER:
                net.fair_F[net.transit_A[a]] = 0.0
    _fill_from(net, least)
    net.counts[UNEVEN] = EVEN
    net.clock[LEAST] = np.inf
    net.clock[DUE] = net.clock[NOW]
    look_ahead(net)


@inner
def _take_out(net: Net, f: int) -> None:
    """Take a flow out of transit, and give back what it has of its links."""
    net.clock[LEAST] = min(net.clock[LEAST], net.rate_F[f])
    release(f, net.on, net.rate_F[f])
    net.rate_F[f], net.fair_F[f] = 0.0, OVER


@inner
def _fill_from(net: Net, least: float) -> None:
    """Fill again the rates of those in transit that have `least` or more: the last of them, as they stand by rate."""
    begin, n, now = _place_of(net, least), 0, net.clock[NOW]
    for a in range(begin, net.counts[TRANSIT]):
        if net.fair_F[net.transit_A[a]] != OVER:
            net.again_A[n] = net.transit_A[a]
            n += 1
    fill(net.again_A, n, least, net.on, net.fair_F, net.transit_A[begin:])
    for a in range(n):
        f = net.again_A[a]
        if net.fair_F[f] != net.rate_F[f]:
            _count_bytes(net, f)
            net.rate_F[f] = net.fair_F[f]
            net.last_F[f] = now + net.left_F[f] / net.rate_F[f]
    net.counts[TRANSIT] = begin + n
    for a in range(begin, begin + n):
        net.filled_A[a] = net.fair_F[net.transit_A[a]]
    note_first(net, begin)


@inner
def _place_of(net: Net, least: float) -> int:
    """The first in transit that was filled at `least` or more."""
    if net.counts[UNEVEN] == ALL:
        return 0
    low, high = 0, net.counts[TRANSIT]
    while low < high:
        middle = (low + high) // 2
        if net.filled_A[middle] < least:
            low = middle + 1
        else:
            high = middle
    return low


@inner
def _count_bytes(net: Net, f: int) -> None:
    net.left_F[f] = max(0.0, net.left_F[f] - net.rate_F[f] * (net.clock[NOW] - net.since_F[f]))
    net.since_F[f] = net.clock[NOW]


@inner
def _finish(net: Net, now: float) -> None:
    """Tell the ends of the flows whose last bytes have left; those that were slowed stay until the window ends."""
    while net.counts[GONE] < net.counts[SOON] and net.last_F[net.soon_A[net.counts[GONE]]] <= now:
        f = net.soon_A[net.counts[GONE]]
        net.counts[GONE] += 1
        net.counts[UNEVEN] = max(net.counts[UNEVEN], SOME)
        if net.clock[TOLERANCE] > 0:
            if net.since_F[f] == TOLD:
                continue
            net.since_F[f] = TOLD
            net.counts[RESIDUE] += 1
        else:
            _take_out(net, f)
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
        if flow.bytes == 0 or net.on.offsets_F1[f] == net.on.offsets_F1[f + 1]:
            _last_byte_left(net, f, time)
            continue
        net.since_F[f], net.left_F[f], net.last_F[f] = net.clock[NOW], flow.bytes, np.inf
        net.transit_A[net.counts[TRANSIT]] = f
        if net.clock[TOLERANCE] > 0:
            enter(net, f)
        else:
            net.fair_F[f] = 0.0  # whatever stood there: only who has left is left out when rates are filled
        net.counts[TRANSIT] += 1
        net.counts[UNEVEN] = ALL
        net.clock[DUE] = min(net.clock[DUE], max(net.clock[NOW], net.clock[PATIENCE]))


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
