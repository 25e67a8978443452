"""Lower bounds on one exchange, compiled: what a rank waits for, directly or through relays, and how late that can be.

Which flows somebody waits for together stands in `moecast.sim.network.crowds`.

Axes: F flow, J link, X (flow, link) pair, R rank, K EP group, C crowd, M (crowd, flow) member, Y (crowd, link) with a
past, W rank by its group.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moecast.compiled import entry, inner
from moecast.sim.network.crowds import Fed, after_the_last, awaited, by_number, crowds
from moecast.sim.network.maxmin import Records
from moecast.sim.program import Float, Int, Int32

# What a link serves: the earliest start of all, and the load of all in seconds; the same of the last of them between
# which it need not be idle; the least time from a last byte until whoever waits may leave.
WORK = np.dtype([("first", "f8"), ("total", "f8"), ("since", "f8"), ("load", "f8"), ("tail", "f8")], align=True)

# What a link has served for a crowd in earlier exchanges: as of `WORK`, the last of it that may have been without gaps.
SERVED = np.dtype([("link", "i8"), ("since", "f8"), ("load", "f8"), ("tail", "f8")], align=True)


class Links(NamedTuple):
    """The links that flows cross, as a CSR, and for how many seconds each flow keeps each busy if alone on it."""

    offsets_F1: Int
    link_X: Int32
    load_X: Float


class Past(NamedTuple):
    """What links have served for each crowd of ranks and of EP groups in earlier exchanges, as a CSR by crowd.

    Only links that some flow of the crowd crossed have a row.
    """

    first_C1: Int
    served_Y: Records

    def of_first(self, n: int) -> Past:
        """Forget all but the first crowds."""
        return Past(self.first_C1[: n + 1], self.served_Y[: self.first_C1[n]])


class Scratch(NamedTuple):
    """Room for every link, the same from one exchange to the next, so that none costs time for links it never uses."""

    work_J: Records
    place_J: Int
    used_J: Int


def scratch(n_links: int) -> Scratch:
    """Make room for so many links, and for one more that is noted as used before it turns out to be known."""
    return Scratch(np.zeros(n_links, WORK), np.full(n_links, -1, np.int64), np.empty(n_links + 1, np.int64))


def no_past(n_ranks: int) -> Past:
    """Give the past of ranks that have exchanged nothing yet."""
    return Past(np.zeros(n_ranks + 1, np.int64), np.empty(0, SERVED))


@entry
def link_loads(bytes_F: Float, offsets_F1: Int, link_X: Int32, share_X: Float, capacity_J: Float) -> Float:
    """For how many seconds each flow keeps each of its links busy if it is alone there."""
    load_X = np.empty(len(link_X))
    for f in range(len(bytes_F)):
        for x in range(offsets_F1[f], offsets_F1[f + 1]):
            load_X[x] = bytes_F[f] * share_X[x] / capacity_J[link_X[x]]
    return load_X


@entry
def flow_bounds(
    order_F: Int, source_F: Int32, links: Links, latency_F: Float, fed: Fed, begin_R: Float
) -> tuple[Float, Float, Float]:
    """Earliest start and end of each flow, and the least time from one to the other, as if it were alone."""
    n = len(latency_F)
    start_F, end_F, alone_F = np.empty(n), np.empty(n), np.empty(n)
    # Parents first: what feeds a flow is known when the flow is looked at.
    for f in order_F:
        drain = 0.0
        for x in range(links.offsets_F1[f], links.offsets_F1[f + 1]):
            drain = max(drain, links.load_X[x])
        alone_F[f] = drain + latency_F[f]
        start, end = -np.inf, -np.inf
        for r in range(fed.parents_F1[f], fed.parents_F1[f + 1]):
            start = max(start, start_F[fed.parent_R[r]] + fed.delay_F[f])
            end = max(end, end_F[fed.parent_R[r]] + fed.tail_F[f])
        start_F[f] = start if fed.parents_F1[f] < fed.parents_F1[f + 1] else begin_R[source_F[f]]
        end_F[f] = max(end, start_F[f] + alone_F[f])
    return start_F, end_F, alone_F


@entry
def leave_bounds(
    order_F: Int,
    start_F: Float,
    end_F: Float,
    alone_F: Float,
    source_F: Int32,
    waiter_F: Int32,
    links: Links,
    latency_F: Float,
    fed: Fed,
    group_R: Int32,
    n_groups: int,
    barrier: bool,
    begin_R: Float,
    last_begin_R: Float,
    past: Past,
    room: Scratch,
) -> tuple[Float, Float, Float, Past]:
    """When each rank and the last of each EP group leaves at the earliest, and until when each flow may be moving.

    The last is no bound: were links shared fairly, flows that share one would end together, when it has served all that
    the EP group waits for. `order_F` is by `start_F`. A rank begins no sooner than `begin_R`, and no sooner than
    `last_begin_R` if it is the one that left the exchange before as the last of its group. Also gives the past brought
    up to date.
    """
    n_ranks = len(group_R)
    group_K1, rank_W = by_number(group_R, n_groups)
    place_F = np.empty(len(order_F), np.int64)
    for i in range(len(order_F)):
        place_F[order_F[i]] = i
    member_M, first_R1 = awaited(order_F, place_F, waiter_F, alone_F, fed, n_ranks)
    leave_R = np.copy(begin_R)
    if not barrier:
        after_the_last(member_M, first_R1, source_F, fed.parents_F1, group_R, group_K1, rank_W, last_begin_R, leave_R)
    flow_M, tail_M, first_C1 = crowds(
        member_M, first_R1, order_F, source_F, fed.parents_F1, group_R, group_K1, rank_W, barrier
    )
    fair_F = np.copy(end_F)
    over_C, past = _crowd_bounds(
        flow_M, tail_M, first_C1, n_ranks, n_groups, start_F, links, latency_F, past, room, fair_F
    )
    left_K = over_C[n_ranks : n_ranks + n_groups].copy()
    for f in range(len(end_F)):
        if barrier:
            left_K[group_R[source_F[f]]] = max(left_K[group_R[source_F[f]]], end_F[f])
        elif waiter_F[f] >= 0:
            leave_R[waiter_F[f]] = max(leave_R[waiter_F[f]], end_F[f])
    for g in range(n_ranks):
        leave_R[g] = max(leave_R[g], left_K[group_R[g]] if barrier else over_C[g])
    # Whoever was last also has to send all of its own flows before the exchange is over.
    least_K = np.empty(n_groups)
    least_K[:] = np.inf
    for g in range(n_ranks):
        sent = last_begin_R[g] + max(0.0, over_C[n_ranks + n_groups + g] - begin_R[g])
        least_K[group_R[g]] = min(least_K[group_R[g]], sent)
    for g in range(n_ranks):
        left_K[group_R[g]] = max(left_K[group_R[g]], leave_R[g], least_K[group_R[g]])
    return leave_R, left_K, fair_F, past


@inner
def _crowd_bounds(
    flow_M: Int,
    tail_M: Float,
    first_C1: Int,
    n_ranks: int,
    n_groups: int,
    start_F: Float,
    links: Links,
    latency_F: Float,
    past: Past,
    room: Scratch,
    fair_F: Float,
) -> tuple[Float, Past]:
    """For each crowd, when the last of it is over on its slowest link at the earliest.

    A link serves the flows of a crowd, in the order of their starts, in their loads each; the last of them still has
    its latency and tail to come. With what it served for the crowd in earlier exchanges, `past`, the flows of both
    together need their time too, from the earliest of their starts. The EP groups' crowds raise the ends in `fair_F` to
    those of the flows' links.
    """
    n_crowds, with_past = len(first_C1) - 1, n_ranks + n_groups
    over_C, later = np.empty(n_crowds), _longer_past(first_C1, with_past, flow_M, links, past)
    work_J = room.work_J
    for c in range(n_crowds):
        used = 0
        for m in range(first_C1[c], first_C1[c + 1]):
            f = flow_M[m]
            for x in range(links.offsets_F1[f], links.offsets_F1[f + 1]):
                if links.load_X[x] > 0:
                    room.used_J[used] = links.link_X[x]
                    used += _serve(work_J[links.link_X[x]], start_F[f], links.load_X[x], latency_F[f] + tail_M[m])
        over_C[c] = -np.inf
        for i in range(used):
            work = work_J[room.used_J[i]]
            over_C[c] = max(over_C[c], work.since + work.load + work.tail)
        if c < with_past:
            over_C[c] = max(over_C[c], _join_past(c, past, later, room, used))
        if n_ranks <= c < with_past:
            for m in range(first_C1[c], first_C1[c + 1]):
                f = flow_M[m]
                for x in range(links.offsets_F1[f], links.offsets_F1[f + 1]):
                    work = work_J[links.link_X[x]]
                    if work.total > 0 and start_F[f] >= work.since:
                        fair_F[f] = max(fair_F[f], work.since + work.load + latency_F[f])
        for i in range(used):
            work_J[room.used_J[i]].total = 0.0
    return over_C, Past(later.first_C1, later.served_Y[: later.first_C1[with_past]].copy())


@inner
def _longer_past(first_C1: Int, with_past: int, flow_M: Int, links: Links, past: Past) -> Past:
    """Make room for the past and a row for each link of each crowd."""
    most = len(past.served_Y)
    for m in range(first_C1[with_past]):
        most += links.offsets_F1[flow_M[m] + 1] - links.offsets_F1[flow_M[m]]
    return Past(np.zeros(with_past + 1, np.int64), np.empty(most, SERVED))


@inner
def _join_past(c: int, past: Past, later: Past, room: Scratch, used: int) -> float:
    """Add what links now serve for a crowd to what they have served; the time until which the fullest must serve."""
    size, over = later.first_C1[c], -np.inf
    if c + 1 < len(past.first_C1):
        for y in range(past.first_C1[c], past.first_C1[c + 1]):
            room.place_J[past.served_Y[y].link] = size
            later.served_Y[size] = past.served_Y[y]
            size += 1
    for i in range(used):
        j = room.used_J[i]
        if room.place_J[j] < 0:
            served = later.served_Y[size]
            served.link, served.since, served.load, served.tail = j, np.inf, 0.0, np.inf
            room.place_J[j] = size
            size += 1
        over = max(over, _add_to_past(later.served_Y[room.place_J[j]], room.work_J[j]))
    for y in range(later.first_C1[c], size):
        room.place_J[later.served_Y[y].link] = -1
    later.first_C1[c + 1] = size
    return over


@inner
def _serve(work: Any, start: float, load: float, tail: float) -> int:
    """Let a link serve one more flow, which starts no sooner than those before; 1 if it is the first."""
    if work.total == 0:
        work.first, work.since, work.load, work.total, work.tail = start, start, load, load, tail
        return 1
    # Idle until then: what it served before holds nothing up any more.
    if start > work.since + work.load:
        work.since, work.load = start, 0.0
    work.load += load
    work.total += load
    work.tail = min(work.tail, tail)  # nobody knows which is served last: the one with least to come
    return 0


@inner
def _add_to_past(past: Any, work: Any) -> float:
    """Join an exchange's work to that of earlier ones, or let the past go if this alone ends later."""
    past.since, past.load, past.tail = min(past.since, work.first), past.load + work.total, min(past.tail, work.tail)
    over = float(past.since + past.load + past.tail)
    if work.since + work.load > past.since + past.load:
        past.since, past.load, past.tail = work.since, work.load, work.tail
    return over
