"""Lower bounds on one exchange, compiled: what a rank waits for, directly or through relays, and how late that can be.

A *crowd* is a set of flows of which somebody waits for every one: first the crowds of the single ranks, then those of
the EP groups (some rank of the group waits for it), then those of the senders (nobody waits; they are only busy).

Axes: F flow, J link, X (flow, link) pair, G rank, K EP group, C crowd, M (crowd, flow) member.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from moecast.sim.network.maxmin import Records
from moecast.sim.program import Float, Int, Int32

# What a link serves: the earliest start of all, and the load of all in seconds; the same of the last of them between
# which it need not be idle; the least time from a last byte until whoever waits may leave.
WORK = np.dtype([("first", "f8"), ("total", "f8"), ("since", "f8"), ("load", "f8"), ("tail", "f8")], align=True)


class Members(NamedTuple):
    """The flows of every crowd."""

    crowd_M: Int
    flow_M: Int
    tail_M: Float  # seconds from the flow's end until whoever waits may leave, at least
    span_M: Float  # seconds from the flow's start until then, at least


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def awaited(
    waiter_F: Int32, alone_F: Float, parents_F1: Int, parent_R: Int32, delay_F: Float, tail_F: Float, n_ranks: int
) -> Members:
    """For each rank the flows that it waits for, and those that feed them, however far back."""
    n = len(waiter_F)
    first_G1, flow_W = _by_waiter(waiter_F, n_ranks)
    crowd_M, flow_M = np.empty(n, np.int64), np.empty(n, np.int64)
    tail_M, span_M = np.empty(n), np.empty(n)
    seen_F, queued_F, stack_F = np.full(n, -1), np.zeros(n, np.bool_), np.empty(n, np.int64)
    longest_F, span_F, reached_F = np.empty(n), np.empty(n), np.empty(n, np.int64)
    size = 0
    for rank in range(n_ranks):
        reached = 0
        for w in range(first_G1[rank], first_G1[rank + 1]):
            f = flow_W[w]
            seen_F[f], longest_F[f], span_F[f] = rank, 0.0, alone_F[f]
            reached_F[reached], stack_F[reached], queued_F[f] = f, f, True
            reached += 1
        if len(parent_R):
            reached = _reach_back(
                rank, reached, alone_F, parents_F1, parent_R, delay_F, tail_F,
                seen_F, queued_F, stack_F, longest_F, span_F, reached_F,
            )  # fmt: skip
        if size + reached > len(crowd_M):
            more = size + reached
            crowd_M, flow_M = np.append(crowd_M, np.empty(more, np.int64)), np.append(flow_M, np.empty(more, np.int64))
            tail_M, span_M = np.append(tail_M, np.empty(more)), np.append(span_M, np.empty(more))
        for i in range(reached):
            f = reached_F[i]
            crowd_M[size + i], flow_M[size + i], tail_M[size + i], span_M[size + i] = rank, f, longest_F[f], span_F[f]
        size += reached
    return Members(crowd_M[:size], flow_M[:size], tail_M[:size], span_M[:size])


@njit(cache=True, nogil=True)
def _by_waiter(waiter_F: Int32, n_ranks: int) -> tuple[Int, Int]:
    first_G1 = np.zeros(n_ranks + 1, np.int64)
    for waiter in waiter_F:
        if waiter >= 0:
            first_G1[waiter + 1] += 1
    for rank in range(n_ranks):
        first_G1[rank + 1] += first_G1[rank]
    flow_W, put_G = np.empty(first_G1[-1], np.int64), first_G1[:-1].copy()
    for f in range(len(waiter_F)):
        if waiter_F[f] >= 0:
            flow_W[put_G[waiter_F[f]]] = f
            put_G[waiter_F[f]] += 1
    return first_G1, flow_W


@njit(cache=True, nogil=True)
def _reach_back(
    rank: int, reached: int, alone_F: Float, parents_F1: Int, parent_R: Int32, delay_F: Float, tail_F: Float,
    seen_F: Int, queued_F: np.ndarray, stack_F: Int, longest_F: Float, span_F: Float, reached_F: Int,
) -> int:  # fmt: skip
    """Follow the flows on the stack back to those that feed them, keeping the longest way from each to the rank."""
    depth = reached
    while depth:
        depth -= 1
        f = stack_F[depth]
        queued_F[f] = False
        for r in range(parents_F1[f], parents_F1[f + 1]):
            parent = parent_R[r]
            if seen_F[parent] != rank:
                seen_F[parent], longest_F[parent], span_F[parent] = rank, -np.inf, -np.inf
                reached_F[reached] = parent
                reached += 1
            tail = max(longest_F[parent], longest_F[f] + tail_F[f])
            span = max(span_F[parent], span_F[f] + delay_F[f], alone_F[parent] + tail)
            if (tail > longest_F[parent] or span > span_F[parent]) and not queued_F[parent]:
                queued_F[parent] = True
                stack_F[depth] = parent
                depth += 1
            longest_F[parent], span_F[parent] = tail, span
    return reached


@njit(cache=True, nogil=True)
def with_groups(
    members: Members, group_G: Int32, source_F: Int32, parents_F1: Int, n_groups: int, barrier: bool
) -> Members:
    """Add the crowds of the EP groups, and the senders'.

    A flow has the longest tail that any rank of the group gives it. Behind a barrier all that a group starts counts.
    Of a sender only the flows count that it starts itself.
    """
    n_ranks, n_flows = len(group_G), len(source_F)
    if barrier:
        group_M, flow_M, tail_M = group_G[source_F].astype(np.int64), np.arange(n_flows), np.zeros(n_flows)
    else:
        group_M, flow_M, tail_M = _by_group(members, group_G, n_flows)
    own = (parents_F1[flow_M] == parents_F1[flow_M + 1]) & (group_G[source_F[flow_M]] == group_M)
    own_M = np.flatnonzero(own)
    return Members(
        np.concatenate((members.crowd_M, n_ranks + group_M, n_ranks + n_groups + source_F[flow_M[own_M]])),
        np.concatenate((members.flow_M, flow_M, flow_M[own_M])),
        np.concatenate((members.tail_M, tail_M, tail_M[own_M])),
        members.span_M,
    )


@njit(cache=True, nogil=True)
def _by_group(members: Members, group_G: Int32, n_flows: int) -> tuple[Int, Int, Float]:
    n, n_ranks = len(members.crowd_M), len(group_G)
    group_M, flow_M, tail_M = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n)
    seen_F, place_F = np.full(n_flows, -1), np.empty(n_flows, np.int64)
    size, first_G1 = 0, np.searchsorted(members.crowd_M, np.arange(n_ranks + 1))
    for rank in np.argsort(group_G, kind="mergesort"):
        for m in range(first_G1[rank], first_G1[rank + 1]):
            f = members.flow_M[m]
            if seen_F[f] != group_G[rank]:
                seen_F[f], place_F[f] = group_G[rank], size
                group_M[size], flow_M[size], tail_M[size] = group_G[rank], f, members.tail_M[m]
                size += 1
            tail_M[place_F[f]] = max(tail_M[place_F[f]], members.tail_M[m])
    return group_M[:size], flow_M[:size], tail_M[:size]


@njit(cache=True, nogil=True)
def crowd_bounds(
    members: Members, n_crowds: int, start_F: Float, bytes_F: Float, offsets_F1: Int, link_X: Int32, share_X: Float,
    latency_F: Float, capacity_J: Float, past_CJ: Records,
) -> tuple[Float, Float]:  # fmt: skip
    """For each crowd, when the last of it is over on its slowest link at the earliest, and since when that link works.

    A link serves the flows of a crowd, in the order of their starts, in their bytes times share over its capacity each;
    the last of them still has its latency and tail to come. `past_CJ` holds, for the crowds that it has rows for, what
    each link has served in earlier exchanges, and is brought up to date: the flows of both together need their time
    too, from the earliest of their starts.
    """
    first_C1, member_M = _in_order(members, n_crowds, start_F)
    over_C, since_C = np.full(n_crowds, -np.inf), np.full(n_crowds, np.inf)
    used_J, work_J = np.empty(len(capacity_J), np.int64), np.zeros(len(capacity_J), WORK)
    for c in range(n_crowds):
        used = 0
        for m in member_M[first_C1[c] : first_C1[c + 1]]:
            f = members.flow_M[m]
            for x in range(offsets_F1[f], offsets_F1[f + 1]):
                load = bytes_F[f] * share_X[x] / capacity_J[link_X[x]]
                if load > 0:
                    used_J[used] = link_X[x]
                    used += _serve(work_J[link_X[x]], start_F[f], load, latency_F[f] + members.tail_M[m])
        for j in used_J[:used]:
            work = work_J[j]
            over = work.since + work.load + work.tail
            if c < len(past_CJ):
                over = max(over, _add_to_past(past_CJ[c, j], work))
            if over > over_C[c]:
                over_C[c], since_C[c] = over, work.since
            work.total = 0.0
    return over_C, since_C


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _add_to_past(past: Any, work: Any) -> float:
    """Join an exchange's work to that of earlier ones, or let the past go if this alone ends later."""
    past.since, past.load, past.tail = min(past.since, work.first), past.load + work.total, min(past.tail, work.tail)
    over = float(past.since + past.load + past.tail)
    if work.since + work.load > past.since + past.load:
        past.since, past.load, past.tail = work.since, work.load, work.tail
    return over


@njit(cache=True, nogil=True)
def _in_order(members: Members, n_crowds: int, start_F: Float) -> tuple[Int, Int]:
    """Bring the members in the order of crowds, and those of a crowd in the order of their flows' starts."""
    by_flow, by_crowd = np.zeros(len(start_F) + 1, np.int64), np.zeros(n_crowds + 1, np.int64)
    for m in range(len(members.flow_M)):
        by_flow[members.flow_M[m] + 1] += 1
        by_crowd[members.crowd_M[m] + 1] += 1
    by_flow, by_crowd = np.cumsum(by_flow), np.cumsum(by_crowd)
    put_F, put_C = by_flow[:-1].copy(), by_crowd[:-1].copy()
    of_flow, of_crowd = np.empty(len(members.flow_M), np.int64), np.empty(len(members.flow_M), np.int64)
    for m in range(len(members.flow_M)):
        of_flow[put_F[members.flow_M[m]]] = m
        put_F[members.flow_M[m]] += 1
    for f in np.argsort(start_F):
        for m in of_flow[by_flow[f] : by_flow[f + 1]]:
            of_crowd[put_C[members.crowd_M[m]]] = m
            put_C[members.crowd_M[m]] += 1
    return by_crowd, of_crowd


@njit(cache=True, nogil=True)
def whoever_is_last(members: Members, source_F: Int32, parents_F1: Int, group_G: Int32, begin_G: Float) -> Float:
    """When each rank [G] leaves at the earliest, if some rank of its EP group, unknown which, begins at its `begin_G`.

    -inf for a rank to which some other rank of its group sends nothing: that one may be the last.
    """
    n_ranks = len(group_G)
    span_GG = np.full((n_ranks, n_ranks), -np.inf)
    for rank in range(n_ranks):
        span_GG[rank, rank] = 0.0
    for m in range(len(members.span_M)):
        f, rank = members.flow_M[m], members.crowd_M[m]
        if parents_F1[f] == parents_F1[f + 1]:
            span_GG[source_F[f], rank] = max(span_GG[source_F[f], rank], members.span_M[m])
    leave_G = np.full(n_ranks, np.inf)
    for last in range(n_ranks):
        for rank in range(n_ranks):
            if group_G[last] == group_G[rank]:
                leave_G[rank] = min(leave_G[rank], begin_G[last] + span_GG[last, rank])
    return leave_G


@njit(cache=True, nogil=True)
def latest_end(who_F: Int32, end_F: Float, n: int) -> Float:
    """Take the latest end for each of `n`; -inf where there is none."""
    latest = np.full(n, -np.inf)
    for f in range(len(end_F)):
        if who_F[f] >= 0:
            latest[who_F[f]] = max(latest[who_F[f]], end_F[f])
    return latest
