"""The fluid network within a tolerance: rates are means over windows of time, and each window is filled once.

Within a window a flow gets no more than what it has left, so that what flows that leave give back is at once another's
and every link carries over the window what it can. Bytes are right at a window's end, not at every moment. What is
wrong is when a flow leaves within its last window: by a part of the window that grows with the part of the flows that
leave beside it. The product of the two says how wide a window may be (`_width`).

Parts of the network with few flows are followed from last byte to last byte (`moecast.sim.network.parts`).

A flow's end is told when its last byte has left by this account. Where a window is cut short, since flows start, some
of those that were told have bytes left: they stay in transit until those have left, too.

Axes: F flow, J link, X (flow, link) pair, I flow that leaves in the window, A some of the flows.
"""

from __future__ import annotations

import numpy as np

from moecast.compiled import inner
from moecast.sim.network.capped import LEFT, NO_CAP, fill_capped, open_all, root_of
from moecast.sim.network.maxmin import PAIR, Records
from moecast.sim.network.parts import run_parts
from moecast.sim.network.state import (
    DUE,
    EVEN,
    GONE,
    NOW,
    OPENED,
    PATIENCE,
    RESIDUE,
    SIMULTANEOUS,
    SOON,
    TOLD,
    TOLERANCE,
    TRANSIT,
    UNEVEN,
    WIDTH,
    Net,
    look_ahead,
    note_first,
    sort_soon,
)
from moecast.sim.program import Float, Int

# With no more flows than these, in transit or in a part of the network, rates are shared anew as each leaves.
FEW = 256

# The width of a window is this many times that of the one before, or one part of so many.
STEP = 1.5

# No more than this part of all flows leaves within a window, whatever the tolerance.
MOST_LEAVE = 0.25

# A told flow with less than this part of its bytes left has left; one that has not been told keeps at least a sliver.
NOTHING = 1e-12
SLIVER = 2.0**-50


@inner
def open_window(net: Net) -> None:
    """Count what has left since the last window opened, and share out the links over the next."""
    now = net.clock[NOW]
    large, oldest, fresh = _count_bytes(net)
    width = _width(net, large, now - oldest, fresh)
    net.counts[UNEVEN] = EVEN
    net.clock[OPENED], net.clock[DUE] = now, now + width
    net.clock[PATIENCE] = now + net.clock[TOLERANCE] * (now - oldest)
    if width > 0:
        _fill(net, large, FEW + 1, width)
        soon = _find_ends(net, large, width)
        soon = run_parts(net, large, soon, width)
    else:
        _fill(net, net.counts[TRANSIT], 1, 0.0)
        soon = _find_ends(net, net.counts[TRANSIT], 0.0)
    if soon:
        sort_soon(net, soon)
        if net.counts[RESIDUE]:
            _keep_capacity(net)
    else:
        note_first(net, 0)
        look_ahead(net)


@inner
def enter(net: Net, f: int) -> None:
    """Count a flow that starts among those of its links; it moves when the next window opens."""
    _hold(net, f, 1)


@inner
def _leave(net: Net, f: int) -> None:
    """Take a flow out of transit whose end has been told."""
    _hold(net, f, -1)
    net.rate_F[f], net.on.state_F[f] = 0.0, LEFT
    net.counts[RESIDUE] -= 1


@inner
def _hold(net: Net, f: int, by: int) -> None:
    """Count a flow in, by 1, or out, by -1, on its links and in its part of the network."""
    on = net.on
    for x in range(on.offsets_F1[f], on.offsets_F1[f + 1]):
        pair = on.pair_X[x]
        held = net.held_J[pair.link]
        held.flows += by
        held.weight += by * pair.share
        held.summed = max(held.summed, held.weight)
    net.held_J[root_of(net.place_F[f], net.root_J)].members += by


@inner
def _count_bytes(net: Net) -> tuple[int, float, bool]:
    """Take off what has left since the window opened, and those of which all has; put those in large parts in front.

    Returns how many those are, when the first of all started, and whether any of them is yet to move.
    """
    large, small, oldest, fresh = 0, 0, net.clock[NOW], False
    passed = net.clock[NOW] - net.clock[OPENED]
    for i in range(net.counts[GONE]):
        f = net.soon_A[i]
        if _is_over(net, f, net.left_F[f] - net.rate_F[f] * passed):
            _leave(net, f)
    for a in range(net.counts[TRANSIT]):
        f = net.transit_A[a]
        if net.on.state_F[f] == LEFT:
            continue
        rate = net.rate_F[f]
        left = net.left_F[f] - rate * passed
        net.left_F[f] = left if left > 0 else SLIVER * net.flow_F[f].bytes
        is_large = net.held_J[root_of(net.place_F[f], net.root_J)].members > FEW
        if not (is_large and large):  # of the others the first is the oldest: they stand as they started
            oldest = min(oldest, net.flow_F[f].start)
        if is_large:
            fresh |= rate == 0
            net.transit_A[large] = f
            large += 1
        else:
            net.again_A[small] = f
            small += 1
    net.counts[TRANSIT] = large + small
    for a in range(small):
        net.transit_A[large + a] = net.again_A[a]
    return large, oldest, fresh


@inner
def _is_over(net: Net, f: int, left: float) -> bool:
    return bool(left <= max(NOTHING * net.flow_F[f].bytes, net.rate_F[f] * net.clock[NOW] * 4 * SIMULTANEOUS))


@inner
def _width(net: Net, n: int, age: float, fresh: bool) -> float:
    """How long the rates of the first `n` in transit may stand still.

    That part of the tolerance's part of the oldest flow's age, then, which leaves meanwhile; see `_is_narrow`. A
    window of the tolerance's part of the age now is narrow whoever leaves, and all that is known to be where flows have
    just come.
    """
    if net.counts[TRANSIT] <= FEW:
        return 0.0
    least = net.clock[TOLERANCE] * age
    if fresh and age == 0:
        _fill(net, n, FEW + 1, 0.0)
        for a in range(n):
            net.rate_F[net.transit_A[a]] = net.fair_F[net.transit_A[a]]
    elif fresh or n == 0:
        return float(least)
    width = max(least, net.clock[WIDTH])
    if width == 0:
        width = net.left_F[net.transit_A[0]] / net.rate_F[net.transit_A[0]]
    if _is_narrow(net, n, width, age):
        while _is_narrow(net, n, STEP * width, age):
            width *= STEP
    else:
        while width > least and not _is_narrow(net, n, width, age):
            width = max(least, width / STEP)
    net.clock[WIDTH] = width
    return float(width)


@inner
def _is_narrow(net: Net, n: int, width: float, age: float) -> bool:
    """Whether the part of all flows, and of each link's, that leaves in it times the width is within the tolerance."""
    leaving, part = 0, net.clock[TOLERANCE] * (1 + age / width)
    for a in range(n):
        f = net.transit_A[a]
        if net.left_F[f] <= width * net.rate_F[f]:
            net.again_A[leaving] = f
            leaving += 1
    return leaving <= min(part, MOST_LEAVE) * n and _most_of_a_link(net, leaving, part) <= part


@inner
def _most_of_a_link(net: Net, n: int, enough: float) -> float:
    """The largest part of a link's flows, by share, that the first `n` of `again_A` are; or one of more than `enough`.

    Of its flows and not of its bytes: the few that are fast, since all of their links have room, need no windows of
    their own.
    """
    most, link_J = 0.0, net.on.link_J
    for j in range(len(link_J)):
        link_J[j].freed = 0.0
    for a in range(n):
        f = net.again_A[a]
        for x in range(net.on.offsets_F1[f], net.on.offsets_F1[f + 1]):
            pair = net.on.pair_X[x]
            link = link_J[pair.link]
            link.freed += pair.share / max(pair.share, net.held_J[pair.link].weight)  # no sum that lost its digits
            most = max(most, link.freed)
        if most > enough:
            break
    return most


@inner
def _fill(net: Net, n: int, least: int, width: float) -> None:
    """Share out links among the first `n` in transit, all in parts of the network with `least` flows or more."""
    size = open_all(least, net.held_J, net.root_J, net.capacity_J, net.on)
    for a in range(n):
        net.fair_F[net.transit_A[a]] = net.left_F[net.transit_A[a]] * (1 / width) if width > 0 else NO_CAP
    fill_capped(net.transit_A, n, size, net.on, net.fair_F)


@inner
def _find_ends(net: Net, n: int, width: float) -> int:
    """Find out when the first `n` in transit leave, list those that do in the window, and give how many those are."""
    soon, now = 0, net.clock[NOW]
    for a in range(n):
        f = net.transit_A[a]
        rate, left = net.fair_F[f], net.left_F[f]
        net.rate_F[f], net.last_F[f] = rate, now + left / rate
        if width > 0 and rate >= left * (1 / width):
            net.soon_A[soon] = f
            soon += 1
    _end_within(net, soon, width)
    return soon


@inner
def _end_within(net: Net, soon: int, width: float) -> None:
    """Find out when those leave, the first of `soon_A`, that have all of their bytes sent within the window.

    In the order of what they have left: when one has that, those with more have had as much, and so have those that
    the link keeps from going faster. The slowest of a flow's links says when that is.
    """
    link_J, soon_A = net.on.link_J, net.soon_A
    first_I, pair_I, left_I = _put_back(net, soon)
    for i in np.argsort(left_I):
        left, seconds = left_I[i], 0.0
        for x in range(first_I[i], first_I[i + 1]):
            link, share = link_J[pair_I[x].link], pair_I[x].share
            seconds = max(seconds, (link.freed + (link.weight + link.summed) * left) / link.left)
            link.freed += share * left
            link.weight = max(0.0, link.weight - share)
        net.last_F[soon_A[i]] = net.clock[NOW] + min(seconds, width)


@inner
def _put_back(net: Net, soon: int) -> tuple[Int, Records, Float]:
    """Give links back what the first of `soon_A` take of them, and sum those.

    Returns their pairs and what they have left in arrays of their own: all of it stays in the cache.
    """
    on, first_I, left_I = net.on, np.zeros(soon + 1, np.int64), np.empty(soon)
    for i in range(soon):
        f = net.soon_A[i]
        first_I[i + 1] = first_I[i] + on.offsets_F1[f + 1] - on.offsets_F1[f]
        left_I[i] = net.left_F[f]
    pair_I = np.empty(first_I[soon], PAIR)
    for i in range(soon):
        x = on.offsets_F1[net.soon_A[i]]
        for y in range(first_I[i], first_I[i + 1]):
            pair_I[y] = on.pair_X[x + y - first_I[i]]
            link = on.link_J[pair_I[y].link]
            link.freed = link.weight = 0.0
    for i in range(soon):
        for y in range(first_I[i], first_I[i + 1]):
            link = on.link_J[pair_I[y].link]
            link.weight += pair_I[y].share
            link.left += pair_I[y].share * net.rate_F[net.soon_A[i]]
    return first_I, pair_I, left_I


@inner
def _keep_capacity(net: Net) -> None:
    """Let nobody leave before its links can have carried what is left of those that left, it among them."""
    now, link_J = net.clock[NOW], net.on.link_J
    for j in range(len(link_J)):
        link_J[j].freed = 0.0
    for a in range(net.counts[TRANSIT]):
        if net.since_F[net.transit_A[a]] == TOLD:
            _carry(net, net.transit_A[a])
    for i in range(net.counts[SOON]):
        f = net.soon_A[i]
        if net.since_F[f] != TOLD:
            net.last_F[f] = max(net.last_F[f], now + _carry(net, f))
    sort_soon(net, net.counts[SOON])


@inner
def _carry(net: Net, f: int) -> float:
    """Put what is left of a flow on its links; how long the slowest of them takes for all that was put on it."""
    seconds = 0.0
    for x in range(net.on.offsets_F1[f], net.on.offsets_F1[f + 1]):
        pair = net.on.pair_X[x]
        link = net.on.link_J[pair.link]
        link.freed += pair.share * net.left_F[f] / net.capacity_J[pair.link]
        seconds = max(seconds, link.freed)
    return seconds
