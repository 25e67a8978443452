"""Max-min fair rates of flows of which some need no more than a given rate: progressive filling with caps.

All rates rise together until a link is full or a flow has its cap; it keeps that, the others rise on (Bertsekas and
Gallager, Data Networks, 1987, section 6.5.2, with a link of its own for each capped flow).

Axes: F flow, J link, A some of the flows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moecast.compiled import entry, inner
from moecast.sim.network.maxmin import CANCELLED, Crossings, Records, keep_row, sink, take
from moecast.sim.program import Float, Int

# Stands for a cap that no flow reaches.
NO_CAP = 1e300

# Says that flows had their caps.
CAPPED = -1

# What stands in `state_F`, a byte a flow, so that those of long lists of links stay in the cache.
SETTLED, RISING, LEFT = range(3)


@inner
def fill_capped(flow_A: Int, n: int, size: int, on: Crossings, rate_F: Float) -> None:
    """Raise the rates of the first `n` flows of `flow_A` together from 0 until each has its cap or a full link.

    Before, `rate_F` holds their caps, and the `size` links that they cross are open (`open_all`, `open_some`). After,
    `summed` of a link are the shares of the flows that it alone keeps from going faster, 0 where it is not full, and
    `left` is what those have of it and what nobody has.

    A heap, `queue_J`, holds the links by the rate at which they would fill if all flows still rising rose on. That
    only rises as flows settle at lower rates, so what is out of date is too early. Caps are looked at when a link
    comes first: those of its flows below its level are settled, all other links of those flows fill later.
    """
    link_J, queue_J, rate = on.link_J, on.queue_J, 0.0
    lowest = np.inf
    for i in range(size):
        lowest = min(lowest, link_J[queue_J[i]].level)
    for i in range(size // 2 - 1, -1, -1):
        sink(i, size, queue_J, link_J)
    for a in range(n):
        f = flow_A[a]
        on.state_F[f] = RISING
        if rate_F[f] <= lowest:
            _take(f, rate_F[f], on)
    while size:
        link = link_J[queue_J[0]]
        if link.rising:
            if link.weight < CANCELLED * link.summed:
                _sum_weight(link, on)
            level = link.left / link.weight
            if level > link.level:
                link.level = level
                sink(0, size, queue_J, link_J)
                continue
            rate = max(rate, level)  # a link that fills together with the last one may seem earlier by rounding
            n = _rising(link, rate, on, rate_F)
            if n == CAPPED:
                continue
            weight = link.weight
            for a in range(n):
                rate_F[on.rising_A[a]] = rate
                _take(on.rising_A[a], rate, on)
            link.summed, link.left = weight, weight * rate
        else:
            link.summed = 0.0
        size -= 1
        queue_J[0] = queue_J[size]
        sink(0, size, queue_J, link_J)


@inner
def open_all(least: int, held_J: Records, root_J: Int, capacity_J: Float, on: Crossings) -> int:
    """Open the links of parts with `least` flows or more, for all that they hold; how many those are."""
    size = 0
    for j in range(len(held_J)):
        held, link = held_J[j], on.link_J[j]
        if held.flows == 0:  # begins anew without what rounding has left
            held.weight = held.summed = 0.0
        elif held_J[root_of(j, root_J)].members >= least:
            link.left, link.rising, link.weight, link.summed = capacity_J[j], held.flows, held.weight, held.summed
            # What has lost its digits comes first, and is summed anew then.
            link.level = link.left / link.weight if link.weight >= CANCELLED * link.summed else 0.0
            on.queue_J[size] = j
            size += 1
            continue
        link.level = np.inf
    return size


@inner
def open_some(flow_A: Int, n: int, on: Crossings) -> int:
    """Open the links for some flows, with what is `left` of each; how many those are."""
    link_J, size = on.link_J, 0
    for a in range(n):
        f = flow_A[a]
        for x in range(on.offsets_F1[f], on.offsets_F1[f + 1]):
            pair = on.pair_X[x]
            link = link_J[pair.link]
            if link.rising == 0:
                link.weight = 0.0
                on.queue_J[size] = pair.link
                size += 1
            link.rising += 1
            link.weight += pair.share
    for i in range(size):
        link = link_J[on.queue_J[i]]
        link.summed = link.weight
        link.level = link.left / link.weight
    return size


@inner
def root_of(j: int, root_J: Int) -> int:
    """The link that stands for the part of the network in which a link is."""
    while root_J[j] != j:
        root_J[j] = root_J[root_J[j]]
        j = root_J[j]
    return j


@entry
def join(first: int, n: int, on: Crossings, held_J: Records, root_J: Int, part_F: Int) -> None:
    """Make one part of the network of all links that a flow crosses, for `n` flows, and tell each one of its links."""
    for f in range(first, first + n):
        if on.offsets_F1[f] == on.offsets_F1[f + 1]:
            continue
        root = root_of(on.pair_X[on.offsets_F1[f]].link, root_J)
        part_F[f] = root
        for x in range(on.offsets_F1[f] + 1, on.offsets_F1[f + 1]):
            other = root_of(on.pair_X[x].link, root_J)
            if other != root:
                root_J[other] = root
                held_J[root].members += held_J[other].members


@inner
def _take(f: int, rate: float, on: Crossings) -> None:
    """Let a flow keep this rate on all of its links."""
    on.state_F[f] = SETTLED
    take(f, rate, on)


@inner
def _rising(full: Any, rate: float, on: Crossings, rate_F: Float) -> int:
    """Settle the flows of a link whose caps are below this rate; where none are, list all that still rise.

    Those that have left leave its rows. Returns how many were listed, or `CAPPED`.
    """
    before, q, n, any_capped = -1, full.first, 0, False
    while q >= 0:
        row = on.row_Q[q]
        kept = row.slot
        for i in range(row.slot, row.slot + row.n):
            f = on.slot_X[i]
            state = on.state_F[f]
            if state == LEFT:
                continue
            if kept < i:
                on.slot_X[kept], on.slot_share_X[kept] = f, on.slot_share_X[i]
            kept += 1
            if state == SETTLED:
                continue
            if rate_F[f] < rate:
                _take(f, rate_F[f], on)
                any_capped = True
            else:
                on.rising_A[n] = f
                n += 1
        before, q = keep_row(full, before, q, kept - row.slot, on)
    return CAPPED if any_capped else n


@inner
def _sum_weight(link: Any, on: Crossings) -> None:
    weight, q = 0.0, link.first
    while q >= 0:
        row = on.row_Q[q]
        for i in range(row.slot, row.slot + row.n):
            if on.state_F[on.slot_X[i]] == RISING:
                weight += on.slot_share_X[i]
        q = row.next
    link.weight = weight
    link.summed = weight
