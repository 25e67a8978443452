"""The fluid network within a tolerance: rates are the means over windows of time, each filled once.

Within a window a flow gets no more than what it has left, so that what flows that leave give back is at once another's
and every link carries over the window what it can. Bytes are right at a window's end, not at every moment.

Axes: F flow, J link, A some of the flows.
"""

from __future__ import annotations

import numpy as np

from moecast.sim.compiled import inner
from moecast.sim.network.capped import NO_CAP, fill_capped
from moecast.sim.network.maxmin import OVER
from moecast.sim.network.state import (
    DUE,
    EVEN,
    GONE,
    NOW,
    OPENED,
    PATIENCE,
    SOON,
    TOLD,
    TOLERANCE,
    TRANSIT,
    Net,
    look_ahead,
)

KAPPA = 5.0
PHI = 12.5
PSI = 1.0
FEW = 256
NOTHING = 1e-12
SLIVER = 2.0**-50


@inner
def open_window(net: Net) -> None:
    oldest = _count_bytes(net)
    now = net.clock[NOW]
    net.counts[SOON] = net.counts[GONE] = 0
    width = _width(net, oldest)
    net.clock[OPENED] = now
    net.clock[DUE] = now + width
    net.clock[PATIENCE] = now + net.clock[TOLERANCE] * (now - oldest)
    net.counts[UNEVEN_] = EVEN
    _fill(net, width)
    _tell_ends(net, width)
    look_ahead(net)
    if width > 0:
        _keep_capacity(net)


UNEVEN_ = 3


@inner
def _count_bytes(net: Net) -> float:
    n, now = 0, net.clock[NOW]
    oldest, passed = now, now - net.clock[OPENED]
    for a in range(net.counts[TRANSIT]):
        f = net.transit_A[a]
        left = net.left_F[f] - net.rate_F[f] * passed
        size = net.flow_F[f].bytes
        if net.since_F[f] == TOLD and left <= NOTHING * size:
            net.rate_F[f], net.fair_F[f] = 0.0, OVER
            continue
        net.left_F[f] = max(left, SLIVER * size)
        net.transit_A[n] = f
        n += 1
        oldest = min(oldest, net.flow_F[f].start)
    net.counts[TRANSIT] = n
    return oldest


@inner
def _width(net: Net, oldest: float) -> float:
    n, now = net.counts[TRANSIT], net.clock[NOW]
    if n <= FEW:
        return 0.0
    tol = net.clock[TOLERANCE]
    width = KAPPA * tol * (now - oldest)
    fresh = False
    for a in range(n):
        fresh |= net.rate_F[net.transit_A[a]] == 0
    if fresh and width == 0:
        _fill(net, 0.0)
        for a in range(n):
            net.rate_F[net.transit_A[a]] = net.fair_F[net.transit_A[a]]
        fresh = False
    m, first = 0, np.inf
    for a in range(n):
        f = net.transit_A[a]
        to_go = net.left_F[f] / net.rate_F[f]
        first = min(first, to_go)
        m += to_go <= width
    most = min(0.25, PHI * tol) * n
    if m > most:
        soon = np.empty(m)
        m = 0
        for a in range(n):
            f = net.transit_A[a]
            to_go = net.left_F[f] / net.rate_F[f]
            if to_go <= width:
                soon[m] = to_go
                m += 1
        return float(np.partition(soon, int(most))[int(most)])
    if fresh:
        return width
    width = max(width, first)
    while width < np.inf and _frees_little(net, 2 * width):
        width *= 2
    return width


@inner
def _frees_little(net: Net, width: float) -> bool:
    n, m = net.counts[TRANSIT], 0
    psi = PSI * net.clock[TOLERANCE]
    for a in range(n):
        f = net.transit_A[a]
        if net.left_F[f] <= width * net.rate_F[f]:
            net.again_A[m] = f
            m += 1
            if m > psi * n:
                return False
    link_J = net.on.link_J
    link_J["freed"][:] = 0.0
    for a in range(m):
        f = net.again_A[a]
        for x in range(net.on.offsets_F1[f], net.on.offsets_F1[f + 1]):
            pair = net.on.pair_X[x]
            link = link_J[pair.link]
            link.freed += pair.share * net.rate_F[f] / net.capacity_J[pair.link]
            if link.freed > psi:
                return False
    return True


@inner
def _fill(net: Net, width: float) -> None:
    net.on.link_J["left"][:] = net.capacity_J
    for a in range(net.counts[TRANSIT]):
        f = net.transit_A[a]
        net.fair_F[f] = -net.left_F[f] / width if width > 0 else -NO_CAP
    fill_capped(net.transit_A, net.counts[TRANSIT], net.on, net.fair_F)


@inner
def _tell_ends(net: Net, width: float) -> None:
    n, m, now = net.counts[TRANSIT], 0, net.clock[NOW]
    for a in range(n):
        f = net.transit_A[a]
        rate = net.fair_F[f]
        net.rate_F[f] = rate
        if width > 0 and rate >= net.left_F[f] / width:
            level = np.inf
            for x in range(net.on.offsets_F1[f], net.on.offsets_F1[f + 1]):
                level = min(level, net.on.link_J[net.on.pair_X[x].link].level)
            if level == np.inf:
                net.again_A[m] = f
                m += 1
            rate = max(rate, level)
        net.last_F[f] = now + net.left_F[f] / rate
    for a in range(m):
        f = net.again_A[a]
        for x in range(net.on.offsets_F1[f], net.on.offsets_F1[f + 1]):
            pair = net.on.pair_X[x]
            net.on.link_J[pair.link].left += pair.share * net.rate_F[f]
        net.fair_F[f] = -NO_CAP
    fill_capped(net.again_A, m, net.on, net.fair_F)
    for a in range(m):
        f = net.again_A[a]
        net.last_F[f] = now + net.left_F[f] / net.fair_F[f]


@inner
def _keep_capacity(net: Net) -> None:
    now, link_J, capacity_J = net.clock[NOW], net.on.link_J, net.capacity_J
    link_J["freed"][:] = 0.0
    for a in range(net.counts[TRANSIT]):
        f = net.transit_A[a]
        if net.since_F[f] == TOLD:
            for x in range(net.on.offsets_F1[f], net.on.offsets_F1[f + 1]):
                pair = net.on.pair_X[x]
                link_J[pair.link].freed += pair.share * net.left_F[f] / capacity_J[pair.link]
    last = now
    for i in range(net.counts[SOON]):
        f = net.soon_A[i]
        if net.since_F[f] == TOLD:
            continue
        for x in range(net.on.offsets_F1[f], net.on.offsets_F1[f + 1]):
            pair = net.on.pair_X[x]
            link = link_J[pair.link]
            link.freed += pair.share * net.left_F[f] / capacity_J[pair.link]
            net.last_F[f] = max(net.last_F[f], now + link.freed)
        last = max(last, net.last_F[f])
    look_ahead(net)
