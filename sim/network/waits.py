"""Lower bounds on one exchange, compiled: what a rank waits for, directly or through relays, and how late that can be.

A *crowd* is a set of flows of which somebody waits for every one: first the crowds of the single ranks, then those of
the EP groups (some rank of the group waits for it), then those of the senders (the flows that one rank starts).

Axes: F flow, J link, X (flow, link) pair, G rank, K EP group, C crowd, M (crowd, flow) member, W flow by its waiter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moecast.sim.compiled import entry, inner
from moecast.sim.network.maxmin import Records
from moecast.sim.program import Float, Int, Int32

# A flow in a crowd: at least so many seconds pass from its end, and from its start, until whoever waits may leave.
MEMBER = np.dtype([("crowd", "i8"), ("flow", "i8"), ("tail", "f8"), ("span", "f8")], align=True)

# What a link serves: the earliest start of all, and the load of all in seconds; the same of the last of them between
# which it need not be idle; the least time from a last byte until whoever waits may leave.
WORK = np.dtype([("first", "f8"), ("total", "f8"), ("since", "f8"), ("load", "f8"), ("tail", "f8")], align=True)


@entry
def flow_bounds(
    order_F: Int, bytes_F: Float, source_F: Int32, offsets_F1: Int, link_X: Int32, share_X: Float, latency_F: Float,
    parents_F1: Int, parent_R: Int32, delay_F: Float, tail_F: Float, capacity_J: Float, begin_G: Float,
) -> tuple[Float, Float, Float]:  # fmt: skip
    """Earliest start and end of each flow, and the least time from one to the other, as if it were alone."""
    start_F, end_F, alone_F = np.empty(len(bytes_F)), np.empty(len(bytes_F)), np.empty(len(bytes_F))
    for f in order_F:
        drain = 0.0
        for x in range(offsets_F1[f], offsets_F1[f + 1]):
            drain = max(drain, bytes_F[f] * share_X[x] / capacity_J[link_X[x]])
        alone_F[f] = drain + latency_F[f]
        start, end = -np.inf, -np.inf
        for r in range(parents_F1[f], parents_F1[f + 1]):
            start = max(start, start_F[parent_R[r]] + delay_F[f])
            end = max(end, end_F[parent_R[r]] + tail_F[f])
        start_F[f] = start if parents_F1[f] < parents_F1[f + 1] else begin_G[source_F[f]]
        end_F[f] = max(end, start_F[f] + alone_F[f])
    return start_F, end_F, alone_F


@entry
def leave_bounds(
    order_F: Int, start_F: Float, end_F: Float, alone_F: Float, bytes_F: Float, source_F: Int32, waiter_F: Int32,
    offsets_F1: Int, link_X: Int32, share_X: Float, latency_F: Float, parents_F1: Int, parent_R: Int32,
    delay_F: Float, tail_F: Float, capacity_J: Float, group_G: Int32, n_groups: int, barrier: bool, begin_G: Float,
    last_begin_G: Float, past_CJ: Records,
) -> tuple[Float, Float, Float]:  # fmt: skip
    """When each rank and the last of each EP group leaves at the earliest, and until when each flow may be moving.

    The last is no bound: were links shared fairly, flows that share one would end together, when it has served all that
    the EP group waits for. `order_F` is by `start_F`. A rank begins no sooner than `begin_G`, and no sooner than
    `last_begin_G` if it is the one that left the exchange before as the last of its group.
    """
    n_ranks = len(group_G)
    member_M, first_G1 = _awaited(waiter_F, alone_F, parents_F1, parent_R, delay_F, tail_F, n_ranks)
    leave_G = np.copy(begin_G)
    if not barrier:
        _after_the_last(member_M, first_G1[-1], source_F, parents_F1, group_G, last_begin_G, leave_G)
    member_M, size = _with_groups(member_M, first_G1, source_F, parents_F1, group_G, n_groups, barrier)
    fair_F = np.copy(end_F)
    over_C = _crowd_bounds(
        member_M, _in_order(member_M, size, order_F, 2 * n_ranks + n_groups), start_F, bytes_F, offsets_F1, link_X,
        share_X, latency_F, capacity_J, past_CJ, n_ranks, fair_F,
    )  # fmt: skip
    left_K = over_C[n_ranks : n_ranks + n_groups].copy()
    for f in range(len(end_F)):
        if barrier:
            left_K[group_G[source_F[f]]] = max(left_K[group_G[source_F[f]]], end_F[f])
        elif waiter_F[f] >= 0:
            leave_G[waiter_F[f]] = max(leave_G[waiter_F[f]], end_F[f])
    for g in range(n_ranks):
        leave_G[g] = max(leave_G[g], left_K[group_G[g]] if barrier else over_C[g])
    # Whoever was last also has to send all of its own flows before the exchange is over.
    least_K = np.empty(n_groups)
    least_K[:] = np.inf
    for g in range(n_ranks):
        sent = last_begin_G[g] + max(0.0, over_C[n_ranks + n_groups + g] - begin_G[g])
        least_K[group_G[g]] = min(least_K[group_G[g]], sent)
    for g in range(n_ranks):
        left_K[group_G[g]] = max(left_K[group_G[g]], leave_G[g], least_K[group_G[g]])
    return leave_G, left_K, fair_F


@inner
def _awaited(
    waiter_F: Int32, alone_F: Float, parents_F1: Int, parent_R: Int32, delay_F: Float, tail_F: Float, n_ranks: int
) -> tuple[Records, Int]:
    """For each rank the flows that it waits for, and those that feed them, however far back."""
    n = len(waiter_F)
    by_G1, flow_W = _by_waiter(waiter_F, n_ranks)
    member_M, first_G1 = np.empty(3 * n, MEMBER), np.zeros(n_ranks + 1, np.int64)
    seen_F, queued_F, stack_F = np.zeros(n, np.int64), np.zeros(n, np.int64), np.empty(n, np.int64)
    place_F = np.empty(n, np.int64)
    size = 0
    for rank in range(n_ranks):
        first_G1[rank] = size
        member_M = _room(member_M, size + n)
        depth = 0
        for w in range(by_G1[rank], by_G1[rank + 1]):
            f = flow_W[w]
            seen_F[f], queued_F[f], place_F[f], stack_F[depth] = rank + 1, 1, size, f
            depth += 1
            _put(member_M[size], rank, f, 0.0, alone_F[f])
            size += 1
        while depth and len(parent_R):
            depth -= 1
            f = stack_F[depth]
            queued_F[f] = 0
            child = member_M[place_F[f]]
            for r in range(parents_F1[f], parents_F1[f + 1]):
                p = parent_R[r]
                if seen_F[p] != rank + 1:
                    seen_F[p], place_F[p] = rank + 1, size
                    _put(member_M[size], rank, p, -np.inf, -np.inf)
                    size += 1
                if _reach_back(member_M[place_F[p]], child, alone_F[p], delay_F[f], tail_F[f]) and not queued_F[p]:
                    queued_F[p], stack_F[depth] = 1, p
                    depth += 1
    first_G1[n_ranks] = size
    return member_M, first_G1


@inner
def _reach_back(parent: Any, child: Any, alone: float, delay: float, tail: float) -> bool:
    """Lengthen the way from a flow to the rank that waits, if the one through this child is longer."""
    longest = max(parent.tail, child.tail + tail)
    span = max(parent.span, child.span + delay, alone + longest)
    longer = longest > parent.tail or span > parent.span
    parent.tail, parent.span = longest, span
    return bool(longer)


@inner
def _by_waiter(waiter_F: Int32, n_ranks: int) -> tuple[Int, Int]:
    first_G1 = np.zeros(n_ranks + 1, np.int64)
    for f in range(len(waiter_F)):
        if waiter_F[f] >= 0:
            first_G1[waiter_F[f] + 1] += 1
    for rank in range(n_ranks):
        first_G1[rank + 1] += first_G1[rank]
    flow_W, put_G = np.empty(first_G1[-1], np.int64), first_G1.copy()
    for f in range(len(waiter_F)):
        if waiter_F[f] >= 0:
            flow_W[put_G[waiter_F[f]]] = f
            put_G[waiter_F[f]] += 1
    return first_G1, flow_W


@inner
def _put(member: Any, crowd: int, flow: int, tail: float, span: float) -> None:
    member.crowd, member.flow, member.tail, member.span = crowd, flow, tail, span


@inner
def _room(member_M: Records, size: int) -> Records:
    if size <= len(member_M):
        return member_M
    longer_M = np.empty(2 * size, MEMBER)
    for m in range(len(member_M)):
        longer_M[m] = member_M[m]
    return longer_M


@inner
def _after_the_last(
    member_M: Records, size: int, source_F: Int32, parents_F1: Int, group_G: Int32, last_begin_G: Float, leave_G: Float
) -> None:
    """Raise each rank's leave, given that some rank of its EP group, unknown which, begins at its `last_begin_G`.

    Nothing is known of a rank to which some other rank of its group sends nothing: that one may be the last.
    """
    n_ranks = len(group_G)
    span_GG = np.empty((n_ranks, n_ranks))
    for last in range(n_ranks):
        for rank in range(n_ranks):
            span_GG[last, rank] = 0.0 if last == rank else -np.inf
    for m in range(size):
        f, rank = member_M[m].flow, member_M[m].crowd
        if parents_F1[f] == parents_F1[f + 1]:
            span_GG[source_F[f], rank] = max(span_GG[source_F[f], rank], member_M[m].span)
    for rank in range(n_ranks):
        leave = np.inf
        for last in range(n_ranks):
            if group_G[last] == group_G[rank]:
                leave = min(leave, last_begin_G[last] + span_GG[last, rank])
        leave_G[rank] = max(leave_G[rank], leave)


@inner
def _with_groups(
    member_M: Records, first_G1: Int, source_F: Int32, parents_F1: Int, group_G: Int32, n_groups: int, barrier: bool
) -> tuple[Records, int]:
    """Add the crowds of the EP groups, and the senders'.

    A flow has the longest tail that any rank of the group gives it. Behind a barrier all that a group starts counts.
    Of a sender only the flows count that it starts itself and its own group waits for.
    """
    n_ranks, n_flows = len(group_G), len(source_F)
    size = first_G1[n_ranks]
    seen_F, place_F = np.zeros(n_flows, np.int64), np.empty(n_flows, np.int64)
    before = size
    for group in range(n_groups):
        member_M = _room(member_M, size + 2 * n_flows)
        if barrier:
            for f in range(n_flows):
                if group_G[source_F[f]] == group:
                    _put(member_M[size], n_ranks + group, f, 0.0, 0.0)
                    size += 1
            continue
        for rank in range(n_ranks):
            if group_G[rank] != group:
                continue
            for m in range(first_G1[rank], first_G1[rank + 1]):
                f = member_M[m].flow
                if seen_F[f] != group + 1:
                    seen_F[f], place_F[f] = group + 1, size
                    _put(member_M[size], n_ranks + group, f, member_M[m].tail, 0.0)
                    size += 1
                member_M[place_F[f]].tail = max(member_M[place_F[f]].tail, member_M[m].tail)
    for m in range(before, size):
        f, group = member_M[m].flow, member_M[m].crowd - n_ranks
        if parents_F1[f] == parents_F1[f + 1] and group_G[source_F[f]] == group:
            _put(member_M[size], n_ranks + n_groups + source_F[f], f, member_M[m].tail, 0.0)
            size += 1
    return member_M, size


@inner
def _in_order(member_M: Records, size: int, order_F: Int, n_crowds: int) -> tuple[Int, Int]:
    """Bring the members in the order of crowds, and those of a crowd in that of `order_F`: a CSR of members."""
    by_flow, by_crowd = np.zeros(len(order_F) + 2, np.int64), np.zeros(n_crowds + 2, np.int64)
    for m in range(size):
        by_flow[member_M[m].flow + 2] += 1
        by_crowd[member_M[m].crowd + 2] += 1
    for f in range(len(order_F)):
        by_flow[f + 2] += by_flow[f + 1]
    for c in range(n_crowds):
        by_crowd[c + 2] += by_crowd[c + 1]
    of_flow, of_crowd = np.empty(size, np.int64), np.empty(size, np.int64)
    for m in range(size):
        of_flow[by_flow[member_M[m].flow + 1]] = m
        by_flow[member_M[m].flow + 1] += 1
    for f in order_F:
        for i in range(by_flow[f], by_flow[f + 1]):
            crowd = member_M[of_flow[i]].crowd
            of_crowd[by_crowd[crowd + 1]] = of_flow[i]
            by_crowd[crowd + 1] += 1
    return by_crowd, of_crowd


@inner
def _crowd_bounds(
    member_M: Records, of_crowds: tuple[Int, Int], start_F: Float, bytes_F: Float, offsets_F1: Int, link_X: Int32,
    share_X: Float, latency_F: Float, capacity_J: Float, past_CJ: Records, n_ranks: int, fair_F: Float,
) -> Float:  # fmt: skip
    """For each crowd, when the last of it is over on its slowest link at the earliest.

    A link serves the flows of a crowd, in the order of their starts, in their bytes times share over its capacity each;
    the last of them still has its latency and tail to come. `past_CJ` holds, for the crowds that it has rows for, what
    each link has served in earlier exchanges, and is brought up to date: the flows of both together need their time
    too, from the earliest of their starts. The EP groups' crowds, those with past after the `n_ranks` first, raise the
    ends in `fair_F` to those of the flows' links.
    """
    first_C1, of_crowd = of_crowds
    n_crowds = len(first_C1) - 2
    over_C = np.empty(n_crowds)
    used_J, work_J = np.empty(len(capacity_J), np.int64), np.zeros(len(capacity_J), WORK)
    for c in range(n_crowds):
        over_C[c] = -np.inf
        used = 0
        for i in range(first_C1[c], first_C1[c + 1]):
            member = member_M[of_crowd[i]]
            f = member.flow
            for x in range(offsets_F1[f], offsets_F1[f + 1]):
                load = bytes_F[f] * share_X[x] / capacity_J[link_X[x]]
                if load > 0:
                    used_J[used] = link_X[x]
                    used += _serve(work_J[link_X[x]], start_F[f], load, latency_F[f] + member.tail)
        for i in range(used):
            work = work_J[used_J[i]]
            over = work.since + work.load + work.tail
            if c < len(past_CJ):
                over = max(over, _add_to_past(past_CJ[c, used_J[i]], work))
            over_C[c] = max(over_C[c], over)
        if n_ranks <= c < len(past_CJ):
            for i in range(first_C1[c], first_C1[c + 1]):
                f = member_M[of_crowd[i]].flow
                for x in range(offsets_F1[f], offsets_F1[f + 1]):
                    work = work_J[link_X[x]]
                    if work.total > 0 and start_F[f] >= work.since:
                        fair_F[f] = max(fair_F[f], work.since + work.load + latency_F[f])
        for i in range(used):
            work_J[used_J[i]].total = 0.0
    return over_C


@inner
def _serve(work: Any, start: float, load: float, tail: float) -> int:
    """Let a link serve one more flow, which starts no sooner than those before; 1 if it is the first."""
    if work.total == 0:
        work.first, work.since, work.load, work.total, work.tail = start, start, load, load, tail
        return 1
    if start > work.since + work.load:
        work.since, work.load = start, 0.0
    work.load += load
    work.total += load
    work.tail = min(work.tail, tail)
    return 0


@inner
def _add_to_past(past: Any, work: Any) -> float:
    """Join an exchange's work to that of earlier ones, or let the past go if this alone ends later."""
    past.since, past.load, past.tail = min(past.since, work.first), past.load + work.total, min(past.tail, work.tail)
    over = float(past.since + past.load + past.tail)
    if work.since + work.load > past.since + past.load:
        past.since, past.load, past.tail = work.since, work.load, work.tail
    return over
