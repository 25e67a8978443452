"""Lower bounds on one exchange, compiled: what a rank waits for, directly or through relays, and how late that can be.

Which flows somebody waits for together stands in `moecast.sim.network.crowds`, which link serves which of them in
`moecast.sim.network.slots`, what links served before in `moecast.sim.network.served`.

Axes: F flow, J link, R rank, K EP group, C crowd, M (crowd, flow) member, Z slot, V visit.
"""

from __future__ import annotations

import numpy as np

from moecast.compiled import entry, inner
from moecast.sim.network.crowds import Crowds, Fed
from moecast.sim.network.maxmin import Records
from moecast.sim.network.served import WORK, Begun, Moving, Past, join_past, serve, still_sending
from moecast.sim.network.slots import Slots, Visits
from moecast.sim.program import Float, Int, Int32


@entry
def by_start(begin_R: Float, first_S1: Int, flow_S: Int, bytes_F: Float) -> Int:
    """Order the flows that there are by their starts where none is fed: all of one sender start together."""
    order_F, n = np.empty(len(flow_S), np.int64), 0
    for r in np.argsort(begin_R):
        for s in range(first_S1[r], first_S1[r + 1]):
            if bytes_F[flow_S[s]] >= 0:
                order_F[n] = flow_S[s]
                n += 1
    return order_F[:n]


@entry
def flow_bounds(
    source_F: Int32,
    bytes_F: Float,
    pace_F: Float,
    latency_F: Float,
    fed: Fed,
    delay_F: Float,
    tail_F: Float,
    begin_R: Float,
) -> tuple[Float, Float, Float]:
    """Earliest start and end of each flow, and the least time from one to the other, as if it were alone."""
    n = len(latency_F)
    start_F, end_F, alone_F = np.empty(n), np.empty(n), np.empty(n)
    # Parents first: what feeds a flow is known when the flow is looked at.
    for f in fed.order_F:
        alone_F[f] = max(bytes_F[f], 0.0) * pace_F[f] + latency_F[f]
        start, end = begin_R[source_F[f]], -np.inf
        if fed.parents_F1[f] < fed.parents_F1[f + 1]:
            start = -np.inf
            for r in range(fed.parents_F1[f], fed.parents_F1[f + 1]):
                p = fed.parent_R[r]
                if bytes_F[p] >= 0:
                    start = max(start, start_F[p] + delay_F[f])
                    end = max(end, end_F[p] + tail_F[f])
        start_F[f] = start
        end_F[f] = max(end, start + alone_F[f])
    return start_F, end_F, alone_F


@entry
def leave_bounds(
    moving: Moving, crowds: Crowds, slots: Slots, begun: Begun, past: Past, one_grouping: bool, place_J: Int
) -> tuple[Float, Float, Float, Past]:
    """When each rank and the last of each EP group leaves at the earliest, and until when each flow may be moving.

    The last is no bound: were links shared fairly, flows that share one would end together, when it has served all that
    the EP group waits for. `one_grouping`: later exchanges of these ranks are among the same groups. `place_J` is -1
    everywhere, before and after. Also gives the past brought up to date.
    """
    n_ranks, n_groups, group_R = len(begun.group_R), begun.n_groups, begun.group_R
    work_Z = np.zeros(len(slots.link_Z), WORK)
    _visit(moving, slots.visits, work_Z)
    over_C = _over(moving, crowds, slots, work_Z, n_ranks + n_groups)
    leave_R = begun.begin_R.copy()
    if not begun.barrier:
        _after_the_last(moving, crowds, begun, leave_R)
    left_K = over_C[n_ranks : n_ranks + n_groups].copy()
    _end(moving, begun, over_C, leave_R, left_K)
    floor_K = np.full(n_groups, np.inf)
    for g in range(n_ranks):
        floor_K[group_R[g]] = min(floor_K[group_R[g]], leave_R[g])
    if not one_grouping:
        floor_K[:] = floor_K.min()
    first_T1, lone_T = still_sending(moving, crowds, slots.lone, begun, leave_R, floor_K)
    past = join_past(moving, crowds, slots, work_Z, first_T1, lone_T, past, begun, floor_K, place_J, over_C)
    for k in range(n_groups):
        left_K[k] = max(left_K[k], over_C[n_ranks + k])
    for g in range(n_ranks):
        leave_R[g] = max(leave_R[g], left_K[group_R[g]] if begun.barrier else over_C[g])
    # Whoever was last also has to send all of its own flows before the exchange is over.
    least_K = np.full(n_groups, np.inf)
    for g in range(n_ranks):
        sent = begun.last_begin_R[g] + max(0.0, over_C[n_ranks + n_groups + g] - begun.begin_R[g])
        least_K[group_R[g]] = min(least_K[group_R[g]], sent)
    for g in range(n_ranks):
        left_K[group_R[g]] = max(left_K[group_R[g]], leave_R[g], least_K[group_R[g]])
    return leave_R, left_K, _fair(moving, slots.group_visits, work_Z), past


@inner
def _visit(moving: Moving, visits: Visits, work_Z: Records) -> None:
    """Let links serve the flows in the order of their starts, each for its load."""
    tail, tails = 0.0, len(moving.tail_M) > 0
    for f in moving.order_F:
        start, size, latency = moving.start_F[f], moving.bytes_F[f], moving.latency_F[f]
        if size <= 0:
            continue
        for v in range(visits.first_F1[f], visits.first_F1[f + 1]):
            if tails:
                tail = moving.tail_M[visits.member_V[v]]
                if tail == -np.inf:
                    continue
            serve(work_Z[visits.slot_V[v]], start, size * moving.pace_X[visits.pair_V[v]], latency + tail)


@inner
def _over(moving: Moving, crowds: Crowds, slots: Slots, work_Z: Records, senders: int) -> Float:
    """For each crowd, when the last of it is over on its slowest link at the earliest; of senders flows alone too."""
    n_crowds = len(slots.first_C)
    over_C = np.full(n_crowds, -np.inf)
    for c in range(n_crowds):
        for y in range(slots.first_C[c], slots.end_C[c]):
            work = work_Z[slots.slot_Y[y]]
            if work.total > 0:
                over_C[c] = max(over_C[c], work.since + work.load + work.tail)
    for c in range(senders, n_crowds):
        for m in range(crowds.first_C1[c], crowds.first_C1[c + 1]):
            f = crowds.flow_M[m]
            if moving.bytes_F[f] > 0 and moving.alone_F[f] > moving.latency_F[f]:
                tail = moving.tail_M[m] if len(moving.tail_M) else 0.0
                over_C[c] = max(over_C[c], moving.start_F[f] + moving.alone_F[f] + tail)
    return over_C


@inner
def _end(moving: Moving, begun: Begun, over_C: Float, leave_R: Float, left_K: Float) -> None:
    """Raise leaves to the ends of flows and of crowds."""
    for f in moving.order_F:
        if begun.barrier:
            k = begun.group_R[moving.source_F[f]]
            left_K[k] = max(left_K[k], moving.end_F[f])
        elif moving.waiter_F[f] >= 0:
            leave_R[moving.waiter_F[f]] = max(leave_R[moving.waiter_F[f]], moving.end_F[f])
    for g in range(len(leave_R)):
        leave_R[g] = max(leave_R[g], left_K[begun.group_R[g]] if begun.barrier else over_C[g])


@inner
def _fair(moving: Moving, visits: Visits, work_Z: Records) -> Float:
    """Until when each flow may be moving: its end, or that of all that its EP group waits for on one of its links."""
    fair_F = moving.end_F.copy()
    for f in moving.order_F:
        if moving.bytes_F[f] <= 0:
            continue
        for v in range(visits.first_F1[f], visits.first_F1[f + 1]):
            work = work_Z[visits.slot_V[v]]
            if work.total > 0 and moving.start_F[f] >= work.since:
                fair_F[f] = max(fair_F[f], work.since + work.load + moving.latency_F[f])
    return fair_F


@inner
def _after_the_last(moving: Moving, crowds: Crowds, begun: Begun, leave_R: Float) -> None:
    """Raise each rank's leave, given that some rank of its EP group, unknown which, begins at its `last_begin_R`.

    Nothing is known of a rank to which some other rank of its group sends nothing: that one may be the last.
    """
    group_R, spans = begun.group_R, len(moving.tail_M) > 0
    size_K = np.zeros(begun.n_groups, np.int64)
    for g in range(len(group_R)):
        size_K[group_R[g]] += 1
    span_R, by_R = np.empty(len(group_R)), np.full(len(group_R), -1, np.int64)
    for rank in range(len(group_R)):
        span_R[rank], by_R[rank], heard = 0.0, rank, 1
        for m in range(crowds.first_C1[rank], crowds.first_C1[rank + 1]):
            f = crowds.flow_M[m]
            span = moving.span_M[m] if spans else moving.alone_F[f]
            if moving.bytes_F[f] < 0 or span == -np.inf or crowds.fed_F[f]:
                continue
            source = moving.source_F[f]
            if by_R[source] != rank:
                span_R[source], by_R[source] = -np.inf, rank
                heard += group_R[source] == group_R[rank]
            span_R[source] = max(span_R[source], span)
        if heard < size_K[group_R[rank]]:
            continue
        leave = begun.last_begin_R[rank] + span_R[rank]
        for m in range(crowds.first_C1[rank], crowds.first_C1[rank + 1]):
            source = moving.source_F[crowds.flow_M[m]]
            if by_R[source] == rank and group_R[source] == group_R[rank]:
                leave = min(leave, begun.last_begin_R[source] + span_R[source])
        leave_R[rank] = max(leave_R[rank], leave)
