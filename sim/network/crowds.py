"""Who waits for which flows of an exchange together, compiled: directly, or through the relays that feed them.

A *crowd* is a set of flows of which somebody waits for every one: first the crowds of the single ranks, then those of
the EP groups (some rank of the group waits for it), then those of the senders (the flows that one rank starts).

Axes: F flow, R rank, K EP group, C crowd, M (crowd, flow) member, W rank by its group.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moecast.compiled import inner
from moecast.sim.network.maxmin import Records
from moecast.sim.program import Float, Int, Int32

# A flow in a crowd: at least so many seconds pass from its end, and from its start, until whoever waits may leave.
MEMBER = np.dtype([("flow", "i8"), ("tail", "f8"), ("span", "f8")], align=True)


class Fed(NamedTuple):
    """Which flows feed which, and how much later a fed flow starts and ends than its parents."""

    parents_F1: Int
    parent_R: Int32
    delay_F: Float
    tail_F: Float


@inner
def by_number(number_I: Int32, n: int) -> tuple[Int, Int]:
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
def awaited(order_F: Int, place_F: Int, waiter_F: Int32, alone_F: Float, fed: Fed, n_ranks: int) -> tuple[Records, Int]:
    """For each rank the flows that it waits for, and those that feed them, however far back; in `order_F`'s order."""
    n = len(waiter_F)
    direct_R1, flow_W = by_number(waiter_F[order_F], n_ranks)
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
def after_the_last(
    member_M: Records,
    first_R1: Int,
    source_F: Int32,
    parents_F1: Int,
    group_R: Int32,
    group_K1: Int,
    rank_W: Int,
    last_begin_R: Float,
    leave_R: Float,
) -> None:
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
def crowds(
    member_M: Records,
    first_R1: Int,
    order_F: Int,
    source_F: Int32,
    parents_F1: Int,
    group_R: Int32,
    group_K1: Int,
    rank_W: Int,
    barrier: bool,
) -> tuple[Int, Float, Int]:
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
    member_M: Records,
    first_R1: Int,
    order_F: Int,
    source_F: Int32,
    group_R: Int32,
    group_K1: Int,
    rank_W: Int,
    barrier: bool,
) -> tuple[Int, Float, Int]:
    n_flows, n_groups = len(source_F), len(group_K1) - 1
    if barrier:
        first_K1, place_M = by_number(group_R[source_F[order_F]], n_groups)
        return order_F[place_M], np.zeros(n_flows), first_K1
    # Unordered first: the flows of each group, each once.
    flow_M, group_M, tail_M = _once_per_group(member_M, first_R1, n_flows, group_K1, rank_W)
    by_F1, of_flow = by_number(flow_M, n_flows)
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
