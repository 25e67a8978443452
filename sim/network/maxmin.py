"""Max-min fair rates of flows that share links: compiled progressive filling.

All rates rise together until a link is full; its flows keep the rate they have, the others rise on. At the end every
flow has a full link on which no flow is faster (Bertsekas and Gallager, Data Networks, 1987, section 6.5.2). A flow
of rate r takes ``r · share`` of each of its links.

Records keep what one step reads together in one place. Who is on a link stands in rows, one for each set of flows that
was made known together: a full link's flows are read one after another, not from one to where the next may be.

Axes: F flow, J link, X (flow, link) pair, Q row of one link's flows, A some of the flows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.arrays import numbers, whole_numbers
from moecast.compiled import entry, inner
from moecast.sim.program import Float, Int, Int32

Records = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

# A link of a flow.
PAIR = np.dtype([("share", "f8"), ("link", "i8")], align=True)

# Slots in a row that are flows of one link; -1 stands where no further row of the link follows.
ROW = np.dtype([("slot", "i8"), ("n", "i8"), ("next", "i8"), ("link", "i8")], align=True)

# A link: what the settled flows leave of it, kept from one filling to the next; the rate at which it was last seen to
# fill; the shares of its flows that still rise, counted down, and when they were last summed; how many those are, 0
# between fillings; its first row; what flows that left gave back since rates were last shared; scratch of `enlist`.
LINK = np.dtype(
    [
        ("left", "f8"),
        ("level", "f8"),
        ("weight", "f8"),
        ("summed", "f8"),
        ("rising", "i8"),
        ("first", "i8"),
        ("freed", "f8"),
        ("put", "i8"),
    ],
    align=True,
)

# The rate of a flow that is over: it is taken off its links' rows when those are next read.
OVER = -np.inf

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


class Crossings(NamedTuple):
    """Which flows cross which links, from either side, and where the links stand."""

    offsets_F1: Int
    pair_X: Records
    link_J: Records
    row_Q: Records
    slot_X: Int32  # the flows of each link, in rows
    slot_share_X: Float
    queue_J: Int  # scratch
    rising_A: Int  # scratch
    state_F: Bytes  # scratch of `fill_capped`


def empty_links(capacity_J: Float) -> Records:
    """Make links without flows."""
    link_J = np.zeros(len(capacity_J), LINK)
    link_J["left"], link_J["first"] = capacity_J, -1
    return link_J


@entry
def _rate_all(offsets_F1: Int, pair_X: Records, link_J: Records, rate_F: Float) -> None:
    n = len(rate_F)
    row_Q, slot_X, share_X = np.empty(len(pair_X), ROW), np.empty(len(pair_X), np.int32), np.empty(len(pair_X))
    none_A = np.empty(0, np.int64)
    on = Crossings(
        offsets_F1,
        pair_X,
        link_J,
        row_Q,
        slot_X,
        share_X,
        np.empty(len(link_J), np.int64),
        none_A,
        np.empty(0, np.uint8),
    )
    enlist(0, n, 0, on)
    fill(np.arange(n), n, 0.0, on, rate_F, np.empty(n, np.int64))


@entry
def enlist(first: int, n: int, rows: int, on: Crossings) -> int:
    """Put flows, counted from `first`, in new rows of their links, behind `rows` that are there; how many there are.

    A row may hold flows that are not on their way yet: only those count that are rising.
    """
    before = rows
    for x in range(on.offsets_F1[first], on.offsets_F1[first + n]):
        link = on.link_J[on.pair_X[x].link]
        if link.put == 0:
            on.row_Q[rows].link = on.pair_X[x].link
            rows += 1
        link.put += 1
    slot = on.offsets_F1[first]
    for q in range(before, rows):
        row, link = on.row_Q[q], on.link_J[on.row_Q[q].link]
        row.slot, row.n, row.next = slot, link.put, link.first
        link.first, link.put = q, slot
        slot += row.n
    for f in range(first, first + n):
        for x in range(on.offsets_F1[f], on.offsets_F1[f + 1]):
            link = on.link_J[on.pair_X[x].link]
            on.slot_X[link.put], on.slot_share_X[link.put] = f, on.pair_X[x].share
            link.put += 1
    for q in range(before, rows):
        on.link_J[on.row_Q[q].link].put = 0
    return rows


@inner
def release(f: int, on: Crossings, rate: float) -> None:
    """Give back so much of a settled flow's rate."""
    for x in range(on.offsets_F1[f], on.offsets_F1[f + 1]):
        link = on.link_J[on.pair_X[x].link]
        link.left += on.pair_X[x].share * rate


@inner
def fill(flow_A: Int, n: int, least: float, on: Crossings, rate_F: Float, settled_A: Int) -> None:
    """Raise the rates of the first `n` flows of `flow_A` together from `least` until each has a full link.

    They then stand in `settled_A` in the order of their rates.

    Before, `left` is without what `rate_F` gives to all flows on the links; those not in `flow_A` keep that. No rate
    below `least` is given.

    A heap, `queue_J`, holds the links by the rate at which they would fill. That rate only rises as other links settle
    their flows at lower rates, so an entry that is out of date is too early: it is brought up to date when it comes
    first.
    """
    size = _open_links(flow_A, n, on, rate_F)
    link_J, queue_J, rate, settled = on.link_J, on.queue_J, least, 0
    while size:
        link = link_J[queue_J[0]]
        if link.rising:
            if link.weight < CANCELLED * link.summed:
                _sum_weight(link, on, rate_F)
            level = link.left / link.weight
            if level > link.level:
                link.level = level
                sink(0, size, queue_J, link_J)
                continue
            rate = max(rate, level)  # a link that fills together with the last one may seem earlier by rounding
            settled = _settle(link, rate, on, rate_F, settled_A, settled)
        size -= 1
        queue_J[0] = queue_J[size]
        sink(0, size, queue_J, link_J)


@inner
def _open_links(flow_A: Int, n: int, on: Crossings, rate_F: Float) -> int:
    link_J, queue_J, size = on.link_J, on.queue_J, 0
    for a in range(n):
        f = flow_A[a]
        rate = rate_F[f]
        rate_F[f] = np.inf
        for x in range(on.offsets_F1[f], on.offsets_F1[f + 1]):
            pair = on.pair_X[x]
            link = link_J[pair.link]
            if link.rising == 0:
                link.weight = 0.0
                queue_J[size] = pair.link
                size += 1
            link.rising += 1
            link.weight += pair.share
            link.left += pair.share * rate
    for i in range(size):
        link = link_J[queue_J[i]]
        link.summed = link.weight
        link.level = link.left / link.weight
    for i in range(size // 2 - 1, -1, -1):
        sink(i, size, queue_J, link_J)
    return size


@inner
def _settle(full: Any, rate: float, on: Crossings, rate_F: Float, settled_A: Int, settled: int) -> int:
    """Let the flows of a full link keep this rate; those that are over leave its rows. How many are settled now."""
    before, q = -1, full.first
    while q >= 0:
        row = on.row_Q[q]
        kept = row.slot
        for i in range(row.slot, row.slot + row.n):
            f = on.slot_X[i]
            if rate_F[f] == OVER:
                continue
            if kept < i:
                on.slot_X[kept], on.slot_share_X[kept] = f, on.slot_share_X[i]
            kept += 1
            if rate_F[f] < np.inf:
                continue
            rate_F[f], settled_A[settled] = rate, f
            settled += 1
            take(f, rate, on)
        before, q = keep_row(full, before, q, kept - row.slot, on)
    return settled


@inner
def take(f: int, rate: float, on: Crossings) -> None:
    """Let a rising flow keep this rate on all of its links."""
    for x in range(on.offsets_F1[f], on.offsets_F1[f + 1]):
        pair = on.pair_X[x]
        link = on.link_J[pair.link]
        link.rising -= 1
        link.weight -= pair.share
        link.left -= pair.share * rate


@inner
def keep_row(link: Any, before: int, q: int, n: int, on: Crossings) -> tuple[int, int]:
    """Leave `n` flows in a row of a link, which goes with the last; the row before the next one, and the next one."""
    row = on.row_Q[q]
    row.n = n
    if n:
        return q, row.next
    if before >= 0:
        on.row_Q[before].next = row.next
    else:
        link.first = row.next
    return before, row.next


@inner
def _sum_weight(link: Any, on: Crossings, rate_F: Float) -> None:
    weight, q = 0.0, link.first
    while q >= 0:
        row = on.row_Q[q]
        for i in range(row.slot, row.slot + row.n):
            if rate_F[on.slot_X[i]] == np.inf:
                weight += on.slot_share_X[i]
        q = row.next
    link.weight = weight
    link.summed = weight


@inner
def sink(i: int, size: int, queue_J: Int, link_J: Records) -> None:
    """Put the link at place `i` of a heap by `level` where it belongs."""
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
