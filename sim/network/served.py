"""What links have served for each crowd in earlier exchanges, compiled, and when both together are over.

Axes: F flow, R rank, K EP group, C crowd, M (crowd, flow) member, Z slot, L lone slot, Y (crowd, link) with a
past, T lone slot that may matter later.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from moecast.compiled import inner
from moecast.sim.network.crowds import Crowds
from moecast.sim.network.maxmin import Records
from moecast.sim.network.slots import Lone, Slots
from moecast.sim.program import Float, Int, Int32

# What a link serves: the earliest start of all, and the load of all in seconds; the same of the last of them between
# which it need not be idle; the least time from a last byte until whoever waits may leave.
WORK = np.dtype([("first", "f8"), ("total", "f8"), ("since", "f8"), ("load", "f8"), ("tail", "f8")], align=True)

# What a link has served for a crowd in earlier exchanges: as of `WORK`, the last of it that may have been without gaps.
SERVED = np.dtype([("link", "i8"), ("since", "f8"), ("load", "f8"), ("tail", "f8")], align=True)


class Past(NamedTuple):
    """What links have served for each crowd of ranks and of EP groups in earlier exchanges, as a CSR by crowd.

    Only links that may still be at it when a later exchange begins have a row.
    """

    first_C1: Int
    served_Y: Records

    def of_first(self, n: int) -> Past:
        """Forget all but the first crowds."""
        return Past(self.first_C1[: n + 1], self.served_Y[: self.first_C1[n]])


class Moving(NamedTuple):
    """The flows of an exchange, in the order of their starts: when each starts and ends at the earliest.

    Parameters
    ----------
    order_F
        Of those that there are, by `start_F`.
    pace_X
        Seconds for which a byte keeps a link of its flow busy.
    link_I
        Which of the program's links each of these flows' links is.
    alone_F
        The least time from start to end.
    tail_M, span_M
        As of `moecast.sim.network.crowds.tails`; empty where no flow is fed and somebody waits for each.
    """

    order_F: Int
    source_F: Int32
    waiter_F: Int32
    bytes_F: Float
    pace_X: Float
    link_I: Int32
    latency_F: Float
    start_F: Float
    end_F: Float
    alone_F: Float
    tail_M: Float
    span_M: Float


class Begun(NamedTuple):
    """When ranks begin [R], at the earliest, and if they are the one that left the exchange before as the last."""

    group_R: Int32
    n_groups: int
    barrier: bool
    begin_R: Float
    last_begin_R: Float


def no_past(n_ranks: int) -> Past:
    """Give the past of ranks that have exchanged nothing yet."""
    return Past(np.zeros(n_ranks + 1, np.int64), np.empty(0, SERVED))


@inner
def serve(work: Any, start: float, load: float, tail: float) -> None:
    """Let a link serve one more flow, which starts no sooner than those before."""
    if work.total == 0:
        work.first, work.since, work.load, work.total, work.tail = start, start, load, load, tail
        return
    # Idle until then: what it served before holds nothing up any more.
    if start > work.since + work.load:
        work.since, work.load = start, 0.0
    work.load += load
    work.total += load
    work.tail = min(work.tail, tail)  # nobody knows which is served last: the one with least to come


@inner
def still_sending(
    moving: Moving, crowds: Crowds, lone: Lone, begun: Begun, leave_R: Float, floor_K: Float
) -> tuple[Int, Int]:
    """Lone slots, by crowd as a CSR, of flows that may still be at it when their sender begins the next exchange."""
    size_C1, floor = np.zeros(len(lone.first_C) + 1, np.int64), floor_K.min()
    late_F, n = np.empty(len(moving.order_F), np.int64), 0
    for f in moving.order_F:
        source = moving.source_F[f]
        if not crowds.fed_F[f]:
            floor = leave_R[source]
        elif crowds.by_group:
            floor = floor_K[begun.group_R[source]]
        else:
            floor = floor_K.min()
        if moving.end_F[f] > floor and moving.start_F[f] + (moving.alone_F[f] - moving.latency_F[f]) > floor:
            late_F[n] = f
            n += 1
            for v in range(lone.first_F1[f], lone.first_F1[f + 1]):
                size_C1[lone.crowd_L[lone.lone_V[v]] + 1] += 1
    for c in range(len(lone.first_C)):
        size_C1[c + 1] += size_C1[c]
    put_C, lone_T = size_C1.copy(), np.empty(size_C1[-1], np.int64)
    for f in late_F[:n]:
        for v in range(lone.first_F1[f], lone.first_F1[f + 1]):
            c = lone.crowd_L[lone.lone_V[v]]
            lone_T[put_C[c]] = lone.lone_V[v]
            put_C[c] += 1
    return size_C1, lone_T


@inner
def join_past(
    moving: Moving,
    crowds: Crowds,
    slots: Slots,
    work_Z: Records,
    first_T1: Int,
    lone_T: Int,
    past: Past,
    begun: Begun,
    floor_K: Float,
    place_J: Int,
    over_C: Float,
) -> Past:
    """Add what links serve to what they have served for ranks and groups, and raise `over_C` by both together.

    A link that is done before anybody of a group may begin the next exchange is forgotten.
    """
    n_ranks, lone = len(begun.group_R), slots.lone
    n_crowds = n_ranks + begun.n_groups
    first_C1, alone = np.zeros(n_crowds + 1, np.int64), np.zeros(1, WORK)[0]
    served_Y, size = np.empty(len(past.served_Y) + 64, SERVED), 0
    for c in range(n_crowds):
        floor, first = floor_K[c - n_ranks if c >= n_ranks else begun.group_R[c]], size
        before = past.first_C1[c + 1] - past.first_C1[c] if c + 1 < len(past.first_C1) else 0
        most = before + slots.end_C[c] - slots.first_C[c] + first_T1[c + 1] - first_T1[c]
        served_Y = _room(served_Y, size, size + most)
        for y in range(before):
            served_Y[size] = past.served_Y[past.first_C1[c] + y]
            place_J[served_Y[size].link] = size
            size += 1
        for y in range(slots.first_C[c], slots.end_C[c]):
            z = slots.slot_Y[y]
            size += _join(served_Y, size, moving.link_I[slots.link_Z[z]], work_Z[z], floor, place_J, over_C, c)
        if before:
            for i in range(lone.first_C[c], lone.end_C[c]):
                if place_J[moving.link_I[lone.link_L[i]]] >= 0:
                    _alone(moving, crowds, lone, i, alone)
                    size += _join(served_Y, size, moving.link_I[lone.link_L[i]], alone, floor, place_J, over_C, c)
        for t in range(first_T1[c], first_T1[c + 1]):
            j = moving.link_I[lone.link_L[lone_T[t]]]
            if place_J[j] < 0:
                _alone(moving, crowds, lone, lone_T[t], alone)
                size += _join(served_Y, size, j, alone, floor, place_J, over_C, c)
        kept = first
        for y in range(first, size):
            place_J[served_Y[y].link] = -1
            if served_Y[y].since + served_Y[y].load > floor:
                served_Y[kept] = served_Y[y]
                kept += 1
        size = kept
        first_C1[c + 1] = size
    return Past(first_C1, served_Y[:size].copy())


@inner
def _alone(moving: Moving, crowds: Crowds, lone: Lone, i: int, work: Any) -> None:
    """What the only visitor of a lone slot asks of it."""
    work.total = 0.0
    f, tail = crowds.flow_M[lone.member_L[i]], moving.tail_M[lone.member_L[i]] if len(moving.tail_M) else 0.0
    if moving.bytes_F[f] > 0 and tail > -np.inf:
        serve(work, moving.start_F[f], moving.bytes_F[f] * moving.pace_X[lone.pair_L[i]], moving.latency_F[f] + tail)


@inner
def _room(served_Y: Records, size: int, most: int) -> Records:
    if most <= len(served_Y):
        return served_Y
    longer_Y = np.empty(2 * most, SERVED)  # doubled, so that few copies are made
    for y in range(size):
        longer_Y[y] = served_Y[y]
    return longer_Y


@inner
def _join(served_Y: Records, size: int, link: int, work: Any, floor: float, place_J: Int, over_C: Float, c: int) -> int:
    """Add what a link serves to its row, or make one where it may still be at it later; 1 if a row was made."""
    if work.total == 0:
        return 0
    made = 0
    if place_J[link] < 0:
        if work.since + work.load <= floor:
            return 0
        made, place_J[link] = 1, size
        served = served_Y[size]
        served.link, served.since, served.load, served.tail = link, np.inf, 0.0, np.inf
    over_C[c] = max(over_C[c], _add_to_past(served_Y[place_J[link]], work))
    return made


@inner
def _add_to_past(past: Any, work: Any) -> float:
    """Join an exchange's work to that of earlier ones, or let the past go if this alone ends later."""
    past.since, past.load, past.tail = min(past.since, work.first), past.load + work.total, min(past.tail, work.tail)
    over = float(past.since + past.load + past.tail)
    if work.since + work.load > past.since + past.load:
        past.since, past.load, past.tail = work.since, work.load, work.tail
    return over
