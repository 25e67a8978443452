"""Max-min fair rates of flows that share links: compiled progressive filling.

All rates rise together until a link is full; its flows keep the rate they have, the others rise on. At the end every
flow has a full link on which no flow is faster (Bertsekas and Gallager, Data Networks, 1987, section 6.5.2). A flow
of rate r takes ``r · share`` of each of its links.

Records keep what one step reads together in one place, and few arrays make calls into compiled code cheap.

Axes: F flow, J link, X (flow, link) pair, A some of the flows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.arrays import numbers, whole_numbers
from moecast.sim.compiled import entry, inner
from moecast.sim.program import Float, Int, Int32

Records = npt.NDArray[Any]

# A flow on a link. The pairs that are on a link now form a doubly linked chain; -1 ends it.
PAIR = np.dtype([("share", "f8"), ("link", "i4"), ("flow", "i4"), ("next", "i4"), ("previous", "i4")], align=True)

# A link: what the settled flows leave of it, kept from one filling to the next; the rate at which it was last seen to
# fill; the shares of its flows that still rise, counted down, and when they were last summed; how many those are, 0
# between fillings; the first pair of its chain.
LINK = np.dtype(
    [("left", "f8"), ("level", "f8"), ("weight", "f8"), ("summed", "f8"), ("rising", "i4"), ("first", "i4")], align=True
)

# A sum of shares that was counted down to less than this part of itself has lost too many digits.
CANCELLED = 1e-3


def max_min_rates(offsets_F1: Int, link_X: Int32, share_X: Float, capacity_J: Float) -> Float:
    """Rates [F] at which these flows share the links, in the capacity's unit; infinite for a flow without links.

    Raises
    ------
    ValueError, TypeError
        Offsets that do not rise from 0 to the number of pairs, a link that is not there, or a share or capacity that is
        not finite and above 0.
    """
    capacity_J = numbers("capacity_J", capacity_J, positive=True)
    link_X = whole_numbers("link_X", link_X, most=len(capacity_J) - 1, dtype=np.int32)
    share_X = numbers("share_X", share_X, positive=True, shape=link_X.shape)
    offsets_F1 = checked_offsets("offsets_F1", offsets_F1, len(link_X))
    rate_F, pair_X = np.zeros(len(offsets_F1) - 1), np.zeros(len(link_X), PAIR)
    pair_X["link"], pair_X["share"] = link_X, share_X
    _rate_all(offsets_F1, pair_X, empty_links(capacity_J), rate_F)
    return rate_F


def checked_offsets(name: str, offsets_F1: Int, pairs: int) -> Int:
    """Give the offsets of a CSR.

    Raises
    ------
    ValueError, TypeError
        They do not rise from 0 to the number of pairs.
    """
    offsets_F1 = whole_numbers(name, offsets_F1, most=pairs)
    if not len(offsets_F1) or offsets_F1[0] != 0 or offsets_F1[-1] != pairs or (np.diff(offsets_F1) < 0).any():
        raise ValueError(f"{name}: must rise from 0 to the {pairs} pairs")
    return offsets_F1


def empty_links(capacity_J: Float) -> Records:
    """Make links without flows."""
    link_J = np.zeros(len(capacity_J), LINK)
    link_J["left"], link_J["first"] = capacity_J, -1
    return link_J


@entry
def _rate_all(offsets_F1: Int, pair_X: Records, link_J: Records, rate_F: Float) -> None:
    flow_F = np.arange(len(rate_F))
    for f in flow_F:
        join(f, offsets_F1, pair_X, link_J)
    fill(flow_F, len(flow_F), 0.0, offsets_F1, pair_X, link_J, np.empty(len(link_J), np.int64), rate_F)


@inner
def join(f: int, offsets_F1: Int, pair_X: Records, link_J: Records) -> None:
    """Put a flow on its links."""
    for x in range(offsets_F1[f], offsets_F1[f + 1]):
        link = link_J[pair_X[x].link]
        pair_X[x].flow, pair_X[x].next, pair_X[x].previous = f, link.first, -1
        if link.first >= 0:
            pair_X[link.first].previous = x
        link.first = x


@inner
def part(f: int, offsets_F1: Int, pair_X: Records, link_J: Records) -> None:
    """Take a flow off its links."""
    for x in range(offsets_F1[f], offsets_F1[f + 1]):
        before, after = pair_X[x].previous, pair_X[x].next
        if before >= 0:
            pair_X[before].next = after
        else:
            link_J[pair_X[x].link].first = after
        if after >= 0:
            pair_X[after].previous = before


@inner
def release(f: int, offsets_F1: Int, pair_X: Records, link_J: Records, rate_F: Float) -> None:
    """Give back what a settled flow takes of its links."""
    for x in range(offsets_F1[f], offsets_F1[f + 1]):
        link_J[pair_X[x].link].left += pair_X[x].share * rate_F[f]


@inner
def fill(
    flow_A: Int, n: int, least: float, offsets_F1: Int, pair_X: Records, link_J: Records, queue_J: Int, rate_F: Float
) -> None:
    """Raise the rates of the first `n` flows of `flow_A` together from `least` until each has a full link.

    Before, `left` is without what `rate_F` gives to all flows on the links; those not in `flow_A` keep that. No rate
    below `least` is given.

    A heap, `queue_J`, holds the links by the rate at which they would fill. That rate only rises as other links settle
    their flows at lower rates, so an entry that is out of date is too early: it is brought up to date when it comes
    first.
    """
    size = _open_links(flow_A, n, offsets_F1, pair_X, link_J, queue_J, rate_F)
    rate = least
    while size:
        link = link_J[queue_J[0]]
        if link.rising:
            if link.weight < CANCELLED * link.summed:
                _sum_weight(link, pair_X, rate_F)
            level = link.left / link.weight
            if level > link.level:
                link.level = level
                _sink(0, size, queue_J, link_J)
                continue
            rate = max(rate, level)  # a link that fills together with the last one may seem earlier by rounding
            _settle(link, rate, offsets_F1, pair_X, link_J, rate_F)
        size -= 1
        queue_J[0] = queue_J[size]
        _sink(0, size, queue_J, link_J)


@inner
def _open_links(
    flow_A: Int, n: int, offsets_F1: Int, pair_X: Records, link_J: Records, queue_J: Int, rate_F: Float
) -> int:
    size = 0
    for a in range(n):
        f = flow_A[a]
        rate = rate_F[f]
        rate_F[f] = np.inf
        for x in range(offsets_F1[f], offsets_F1[f + 1]):
            link = link_J[pair_X[x].link]
            if link.rising == 0:
                link.weight = 0.0
                queue_J[size] = pair_X[x].link
                size += 1
            link.rising += 1
            link.weight += pair_X[x].share
            link.left += pair_X[x].share * rate
    for i in range(size):
        link = link_J[queue_J[i]]
        link.summed = link.weight
        link.level = link.left / link.weight
    for i in range(size // 2 - 1, -1, -1):
        _sink(i, size, queue_J, link_J)
    return size


@inner
def _settle(full: Any, rate: float, offsets_F1: Int, pair_X: Records, link_J: Records, rate_F: Float) -> None:
    x = full.first
    while x >= 0:
        f = pair_X[x].flow
        x = pair_X[x].next
        if rate_F[f] < np.inf:
            continue
        rate_F[f] = rate
        for y in range(offsets_F1[f], offsets_F1[f + 1]):
            link = link_J[pair_X[y].link]
            link.rising -= 1
            link.weight -= pair_X[y].share
            link.left -= pair_X[y].share * rate


@inner
def _sum_weight(link: Any, pair_X: Records, rate_F: Float) -> None:
    weight, x = 0.0, link.first
    while x >= 0:
        if rate_F[pair_X[x].flow] == np.inf:
            weight += pair_X[x].share
        x = pair_X[x].next
    link.weight = weight
    link.summed = weight


@inner
def _sink(i: int, size: int, queue_J: Int, link_J: Records) -> None:
    j = queue_J[i]
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and link_J[queue_J[child + 1]].level < link_J[queue_J[child]].level:
            child += 1
        if link_J[queue_J[child]].level >= link_J[j].level:
            break
        queue_J[i] = queue_J[child]
        i = child
    queue_J[i] = j
