"""Lower bounds on one exchange, compiled: what a rank waits for, directly or through relays, and how late that can be.

A *crowd* is a set of flows of which somebody waits for every one: first the crowds of the single ranks, then those of
the EP groups (some rank of the group waits for it), then those of the senders (the flows that one rank starts).

Axes: F flow, J link, X (flow, link) pair, R rank, K EP group, C crowd, M (crowd, flow) member, Y (crowd, link) with a
past, W rank by its group.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moecast.sim.compiled import entry, inner
from moecast.sim.network.maxmin import Records
from moecast.sim.program import Float, Int, Int32

# A flow in a crowd: at least so many seconds pass from its end, and from its start, until whoever waits may leave.
MEMBER = np.dtype([("flow", "i8"), ("tail", "f8"), ("span", "f8")], align=True)

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


class Fed(NamedTuple):
    """Which flows feed which, and how much later a fed flow starts and ends than its parents."""

    parents_F1: Int
    parent_R: Int32
    delay_F: Float
    tail_F: Float


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
    order_F: Int, start_F: Float, end_F: Float, alone_F: Float, source_F: Int32, waiter_F: Int32, links: Links,
    latency_F: Float, fed: Fed, group_R: Int32, n_groups: int, barrier: bool, begin_R: Float, last_begin_R: Float,
    past: Past, room: Scratch,
) -> tuple[Float, Float, Float, Past]:  # fmt: skip
    """When each rank and the last of each EP group leaves at the earliest, and until when each flow may be moving.

    The last is no bound: were links shared fairly, flows that share one would end together, when it has served all that
    the EP group waits for. `order_F` is by `start_F`. A rank begins no sooner than `begin_R`, and no sooner than
    `last_begin_R` if it is the one that left the exchange before as the last of its group. Also gives the past brought
    up to date.
    """
    n_ranks = len(group_R)
    group_K1, rank_W = _by_number(group_R, n_groups)
    place_F = np.empty(len(order_F), np.int64)
    for i in range(len(order_F)):
        place_F[order_F[i]] = i
    member_M, first_R1 = _awaited(order_F, place_F, waiter_F, alone_F, fed, n_ranks)
    leave_R = np.copy(begin_R)
    if not barrier:
        _after_the_last(member_M, first_R1, source_F, fed.parents_F1, group_R, group_K1, rank_W, last_begin_R, leave_R)
    flow_M, tail_M, first_C1 = _crowds(
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
def _by_number(number_I: Int32, n: int) -> tuple[Int, Int]:
    """Bring the places of an array in the order of the numbers there, as a CSR; places with -1 are left out."""
    first_N1 = np.zeros(n + 1, np.int64)
    for number in number_I:
        if number >= 0:
            first_N1[number + 1] += 1
    for i in range(n):
        first_N1[i + 1] += first_N1[i]
    place_W, put_N = np.empty(first_N1[n], np.int64), first_N1.copy()
    for i in range(len(number_I)):
        if number_I[i] >= 0:
            place_W[put_N[number_I[i]]] = i
            put_N[number_I[i]] += 1
    return first_N1, place_W


@inner
def _awaited(
    order_F: Int, place_F: Int, waiter_F: Int32, alone_F: Float, fed: Fed, n_ranks: int
) -> tuple[Records, Int]:
    """For each rank the flows that it waits for, and those that feed them, however far back; in `order_F`'s order."""
    n = len(waiter_F)
    direct_R1, flow_W = _by_number(waiter_F[order_F], n_ranks)
    if not len(fed.parent_R):
        member_M = np.empty(len(flow_W), MEMBER)
        for w in range(len(flow_W)):
            f = order_F[flow_W[w]]
            member_M[w].flow, member_M[w].tail, member_M[w].span = f, 0.0, alone_F[f]
        return member_M, direct_R1
    member_M, first_R1 = np.empty(3 * n, MEMBER), np.zeros(n_ranks + 1, np.int64)
    seen_F, queued_F, stack_F = np.zeros(n, np.int64), np.zeros(n, np.int64), np.empty(n, np.int64)
    at_F = np.empty(n, np.int64)
    size = 0
    for rank in range(n_ranks):
        first_R1[rank] = size
        member_M = _room(member_M, size + n)
        depth = 0
        for w in range(direct_R1[rank], direct_R1[rank + 1]):
            f = order_F[flow_W[w]]
            seen_F[f], queued_F[f], at_F[f], stack_F[depth] = rank + 1, 1, size, f
            depth += 1
            member_M[size].flow, member_M[size].tail, member_M[size].span = f, 0.0, alone_F[f]
            size += 1
        # A flow is reached by several ways, and is looked at again whenever a longer one is found.
        while depth:
            depth -= 1
            f = stack_F[depth]
            queued_F[f] = 0
            child = member_M[at_F[f]]
            for r in range(fed.parents_F1[f], fed.parents_F1[f + 1]):
                p = fed.parent_R[r]
                if seen_F[p] != rank + 1:
                    seen_F[p], at_F[p] = rank + 1, size
                    member_M[size].flow, member_M[size].tail, member_M[size].span = p, -np.inf, -np.inf
                    size += 1
                longer = _reach_back(member_M[at_F[p]], child, alone_F[p], fed.delay_F[f], fed.tail_F[f])
                if longer and not queued_F[p]:
                    queued_F[p], stack_F[depth] = 1, p
                    depth += 1
        _sort(member_M, first_R1[rank], size, place_F)
    first_R1[n_ranks] = size
    return member_M, first_R1


@inner
def _reach_back(parent: Any, child: Any, alone: float, delay: float, tail: float) -> bool:
    """Lengthen the way from a flow to the rank that waits, if the one through this child is longer."""
    longest = max(parent.tail, child.tail + tail)
    span = max(parent.span, child.span + delay, alone + longest)
    longer = longest > parent.tail or span > parent.span
    parent.tail, parent.span = longest, span
    return bool(longer)


@inner
def _room(member_M: Records, size: int) -> Records:
    if size <= len(member_M):
        return member_M
    longer_M = np.empty(2 * size, MEMBER)  # doubled, so that few copies are made
    for m in range(len(member_M)):
        longer_M[m] = member_M[m]
    return longer_M


@inner
def _sort(member_M: Records, first: int, end: int, place_F: Int) -> None:
    """Bring some members in the order of their flows' places."""
    place_M = np.empty(end - first, np.int64)
    for m in range(first, end):
        place_M[m - first] = place_F[member_M[m].flow]
    before_M = member_M[first:end].copy()
    sorted_M = np.argsort(place_M)
    for m in range(len(sorted_M)):
        member_M[first + m] = before_M[sorted_M[m]]


@inner
def _after_the_last(
    member_M: Records, first_R1: Int, source_F: Int32, parents_F1: Int, group_R: Int32, group_K1: Int, rank_W: Int,
    last_begin_R: Float, leave_R: Float,
) -> None:  # fmt: skip
    """Raise each rank's leave, given that some rank of its EP group, unknown which, begins at its `last_begin_R`.

    Nothing is known of a rank to which some other rank of its group sends nothing: that one may be the last.
    """
    span_R = np.empty(len(group_R))
    span_R[:] = -np.inf
    for rank in range(len(group_R)):
        span_R[rank] = 0.0
        for m in range(first_R1[rank], first_R1[rank + 1]):
            f = member_M[m].flow
            if parents_F1[f] == parents_F1[f + 1]:
                span_R[source_F[f]] = max(span_R[source_F[f]], member_M[m].span)
        leave = np.inf
        for w in range(group_K1[group_R[rank]], group_K1[group_R[rank] + 1]):
            leave = min(leave, last_begin_R[rank_W[w]] + span_R[rank_W[w]])
        leave_R[rank] = max(leave_R[rank], leave)
        # Only what was touched is cleared: all ranks for each rank would be quadratic.
        for m in range(first_R1[rank], first_R1[rank + 1]):
            span_R[source_F[member_M[m].flow]] = -np.inf
        span_R[rank] = -np.inf


@inner
def _crowds(
    member_M: Records, first_R1: Int, order_F: Int, source_F: Int32, parents_F1: Int, group_R: Int32, group_K1: Int,
    rank_W: Int, barrier: bool,
) -> tuple[Int, Float, Int]:  # fmt: skip
    """Give the crowds of the ranks, the EP groups and the senders as a CSR of flows and tails, each in order.

    A flow has the longest tail that any rank of the group gives it. Behind a barrier all that a group starts counts.
    Of a sender only the flows count that it starts itself and its own group waits for.
    """
    n_ranks, n_groups = len(group_R), len(group_K1) - 1
    flow_M, tail_M, first_K1 = _group_crowds(member_M, first_R1, order_F, source_F, group_R, group_K1, rank_W, barrier)
    n, of_groups = first_R1[n_ranks], len(flow_M)
    first_C1 = np.zeros(2 * n_ranks + n_groups + 1, np.int64)
    first_C1[: n_ranks + 1] = first_R1
    first_C1[n_ranks : n_ranks + n_groups + 1] = n + first_K1
    senders_C1 = first_C1[n_ranks + n_groups :]
    for k in range(n_groups):
        for m in range(first_K1[k], first_K1[k + 1]):
            f = flow_M[m]
            if parents_F1[f] == parents_F1[f + 1] and group_R[source_F[f]] == k:
                senders_C1[source_F[f] + 1] += 1
    for g in range(n_ranks):
        senders_C1[g + 1] += senders_C1[g]
    every_M, late_M = np.empty(senders_C1[n_ranks], np.int64), np.empty(senders_C1[n_ranks])
    for m in range(n):
        every_M[m], late_M[m] = member_M[m].flow, member_M[m].tail
    every_M[n : n + of_groups], late_M[n : n + of_groups] = flow_M, tail_M
    put_R = senders_C1[:n_ranks].copy()
    for k in range(n_groups):
        for m in range(first_K1[k], first_K1[k + 1]):
            f = flow_M[m]
            if parents_F1[f] == parents_F1[f + 1] and group_R[source_F[f]] == k:
                every_M[put_R[source_F[f]]], late_M[put_R[source_F[f]]] = f, tail_M[m]
                put_R[source_F[f]] += 1
    return every_M, late_M, first_C1


@inner
def _group_crowds(
    member_M: Records, first_R1: Int, order_F: Int, source_F: Int32, group_R: Int32, group_K1: Int, rank_W: Int,
    barrier: bool,
) -> tuple[Int, Float, Int]:  # fmt: skip
    n_flows, n_groups = len(source_F), len(group_K1) - 1
    if barrier:
        first_K1, place_M = _by_number(group_R[source_F[order_F]], n_groups)
        return order_F[place_M], np.zeros(n_flows), first_K1
    # Unordered first: the flows of each group, each once.
    flow_M, group_M, tail_M = _once_per_group(member_M, first_R1, n_flows, group_K1, rank_W)
    by_F1, of_flow = _by_number(flow_M, n_flows)
    first_K1 = np.zeros(n_groups + 1, np.int64)
    for group in group_M:
        first_K1[group + 1] += 1
    for k in range(n_groups):
        first_K1[k + 1] += first_K1[k]
    put_K = first_K1.copy()
    sorted_M, late_M = np.empty(len(flow_M), np.int64), np.empty(len(flow_M))
    for f in order_F:
        for i in range(by_F1[f], by_F1[f + 1]):
            k = group_M[of_flow[i]]
            sorted_M[put_K[k]], late_M[put_K[k]] = f, tail_M[of_flow[i]]
            put_K[k] += 1
    return sorted_M, late_M, first_K1


@inner
def _once_per_group(
    member_M: Records, first_R1: Int, n_flows: int, group_K1: Int, rank_W: Int
) -> tuple[Int, Int, Float]:
    size, most = 0, first_R1[-1]
    seen_F, at_F = np.full(n_flows, -1, np.int64), np.empty(n_flows, np.int64)
    flow_M, group_M, tail_M = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most)
    for k in range(len(group_K1) - 1):
        for w in range(group_K1[k], group_K1[k + 1]):
            for m in range(first_R1[rank_W[w]], first_R1[rank_W[w] + 1]):
                f = member_M[m].flow
                # The group that saw a flow last: nothing is cleared between groups.
                if seen_F[f] != k:
                    seen_F[f], at_F[f] = k, size
                    flow_M[size], group_M[size], tail_M[size] = f, k, member_M[m].tail
                    size += 1
                tail_M[at_F[f]] = max(tail_M[at_F[f]], member_M[m].tail)
    return flow_M[:size], group_M[:size], tail_M[:size]


@inner
def _crowd_bounds(
    flow_M: Int, tail_M: Float, first_C1: Int, n_ranks: int, n_groups: int, start_F: Float, links: Links,
    latency_F: Float, past: Past, room: Scratch, fair_F: Float,
) -> tuple[Float, Past]:  # fmt: skip
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
