"""Small parts of the fluid network, which share no link with others: the GPUs of a node, beside what crosses NICs.

Within a tolerance they are followed through each window from last byte to last byte, since their few flows would ask
for windows of their own.

Axes: F flow, J link, X (flow, link) pair, A some of the flows.
"""

from __future__ import annotations

import numpy as np

from moecast.compiled import inner
from moecast.sim.network.capped import NO_CAP, fill_capped, open_some, root_of
from moecast.sim.network.state import NOW, SIMULTANEOUS, TRANSIT, Net
from moecast.sim.program import Int


@inner
def run_parts(net: Net, large: int, soon: int, width: float) -> int:
    """Follow the small parts of the network through the window, each by itself; list who leaves in it."""
    n = net.counts[TRANSIT] - large
    part_A = np.empty(n, np.int64)
    for a in range(n):
        part_A[a] = root_of(net.place_F[net.transit_A[large + a]], net.root_J)
    order_A = np.argsort(part_A)
    start = 0
    for a in range(n):
        net.again_A[a - start] = net.transit_A[large + order_A[a]]
        if a + 1 == n or part_A[order_A[a + 1]] != part_A[order_A[a]]:
            soon = _run_part(net, a + 1 - start, soon, width)
            start = a + 1
    return soon


@inner
def _run_part(net: Net, n: int, soon: int, width: float) -> int:
    """Follow the first `n` of `again_A` from last byte to last byte; their rates are means over the window."""
    flow_A, m, passed = net.again_A, n, 0.0
    for a in range(n):
        net.rate_F[flow_A[a]] = net.left_F[flow_A[a]]  # kept there until the end
    while m and passed < width:
        _share_alone(net, flow_A, m)
        step = width - passed
        for a in range(m):
            step = min(step, net.left_F[flow_A[a]] / net.fair_F[flow_A[a]])
        passed += step
        m, soon = _go_on(net, m, soon, step, net.clock[NOW] + passed)
    for a in range(n):
        f = flow_A[a]
        net.rate_F[f], net.left_F[f] = (net.rate_F[f] - net.left_F[f]) / width, net.rate_F[f]
    return soon


@inner
def _share_alone(net: Net, flow_A: Int, n: int) -> None:
    """Share out links among the first `n` flows, all that cross those."""
    on = net.on
    for a in range(n):
        f = flow_A[a]
        net.fair_F[f] = NO_CAP
        for x in range(on.offsets_F1[f], on.offsets_F1[f + 1]):
            on.link_J[on.pair_X[x].link].left = net.capacity_J[on.pair_X[x].link]
    fill_capped(flow_A, n, open_some(flow_A, n, on), on, net.fair_F)


@inner
def _go_on(net: Net, m: int, soon: int, step: float, then: float) -> tuple[int, int]:
    """Let the first `m` of `again_A` go on for a step, and put those behind the others that leave with it."""
    flow_A, a = net.again_A, 0
    while a < m:
        f = flow_A[a]
        left = net.left_F[f] - net.fair_F[f] * step
        if left <= net.fair_F[f] * step * SIMULTANEOUS:
            net.left_F[f], net.last_F[f] = 0.0, then
            net.soon_A[soon] = f
            soon, m = soon + 1, m - 1
            flow_A[a], flow_A[m] = flow_A[m], flow_A[a]
        else:
            net.left_F[f], net.last_F[f] = left, then + left / net.fair_F[f]
            a += 1
    return m, soon
