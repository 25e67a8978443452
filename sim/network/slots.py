"""Which link serves which flows of a crowd, compiled: a *slot* for each link of each crowd, and who visits it.

Found once for all possible flows of a template, so that an exchange only walks its flows in the order of their starts
and brings each to its slots. Two things make these few. What only one flow can ever visit is a *lone* slot: alone
there, the flow ends no sooner than it does anyhow, and the link counts only beside what it served in earlier exchanges.
And where all of a group's flows on a link are of one sender, or go to one rank, the group has no slot of its own there.

Axes: F flow, J link, I link that some flow crosses, R rank, C crowd, M (crowd, flow) member, X (flow, link) pair, P
(member, link) pair, Z slot, L lone slot, Y (crowd, slot) pair, V visit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moecast.compiled import entry, inner
from moecast.sim.network.crowds import Crowds
from moecast.sim.program import Int, Int32

NONE, ALONE = -1, -2  # in the place of a slot: none; the lone slot 0, and below it the others


class Links(NamedTuple):
    """The links that flows cross, as a CSR; `n`: how many links there are."""

    offsets_F1: Int
    link_X: Int32
    n: int


class Visits(NamedTuple):
    """By flow the slots that it visits, as which member of a crowd, and over which of its links; as a CSR.

    No members where no flow has a tail.
    """

    first_F1: Int
    slot_V: Int32
    member_V: Int32
    pair_V: Int32


class Lone(NamedTuple):
    """The lone slots: from which to before which they are of each crowd, their crowds, links and visitors.

    `member_L` is the visitor as a member of the crowd, `pair_L` over which of its links; by flow, as a CSR, `first_F1`
    and `lone_V`.
    """

    first_C: Int
    end_C: Int
    crowd_L: Int32
    link_L: Int32
    member_L: Int32
    pair_L: Int32
    first_F1: Int
    lone_V: Int32


class Slots(NamedTuple):
    """The slots of crowds.

    Parameters
    ----------
    link_Z
        Their links.
    first_C, end_C, slot_Y
        The slots of each crowd: its own, and of a group those of its senders and ranks that are its own.
    visits
        Who visits which.
    group_visits
        Slots of the groups: they say how long a flow may be moving.
    lone
        Those that only one flow visits.
    """

    link_Z: Int32
    first_C: Int
    end_C: Int
    slot_Y: Int32
    visits: Visits
    group_visits: Visits
    lone: Lone


class _Room(NamedTuple):
    """By link: flows of a crowd that cross it, its slot; the fullest slot that may be a group's, how full, whose."""

    crossed_J: Int
    place_J: Int32
    widest_J: Int
    widest_slot_J: Int32
    widest_group_J: Int


@entry
def renamed(link_X: Int32, n_links: int) -> tuple[Int32, Int32]:
    """Count links in the order in which they first come [X], and say which each is [I].

    Templates that are alike but for where they stand, such as those of pipeline stages, then are the same.
    """
    place_J, place_X = np.full(n_links, -1, np.int32), np.empty(len(link_X), np.int32)
    link_I, n = np.empty(min(n_links, len(link_X)), np.int32), 0
    for x in range(len(link_X)):
        j = link_X[x]
        if place_J[j] < 0:
            place_J[j], link_I[n] = n, j
            n += 1
        place_X[x] = place_J[j]
    return place_X, link_I[:n].copy()


@entry
def find_slots(crowds: Crowds, links: Links, group_R: Int32, n_groups: int, has_tails: bool) -> Slots:
    """Give each crowd a slot for each link that several of its flows cross, and lone ones for the others."""
    n_ranks, n_crowds = len(group_R), len(crowds.first_C1) - 1
    first_M1 = _pairs_before(crowds.flow_M, links.offsets_F1)
    most = first_M1[-1]
    slot_P, slot_Y = np.empty(most, np.int32), np.empty(most, np.int32)
    link_Z, owner_Z, lone_P = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.int64)
    ends_4C = np.zeros((4, n_crowds), np.int64)  # first and end of its slots, of its lone ones
    room = _Room(
        np.zeros(links.n, np.int64),
        np.empty(links.n, np.int32),
        np.zeros(links.n, np.int64),
        np.empty(links.n, np.int32),
        np.full(links.n, -1, np.int64),
    )
    senders = n_ranks + n_groups
    group_C = np.concatenate((group_R, np.arange(n_groups), group_R))
    # Groups last: by then the slots that may be theirs are known.
    order_C = np.concatenate((np.arange(n_ranks), np.arange(senders, n_crowds), np.arange(n_ranks, senders)))
    slots, listed, lone = 0, 0, 0
    for c in order_C:
        of_group, group = n_ranks <= c < senders, group_C[c]
        ends_4C[0, c], ends_4C[2, c] = listed, lone
        _count(c, crowds, links, room)
        for m in range(crowds.first_C1[c], crowds.first_C1[c + 1]):
            first = links.offsets_F1[crowds.flow_M[m]]
            for p in range(first_M1[m], first_M1[m + 1]):
                j = links.link_X[first + p - first_M1[m]]
                if room.crossed_J[j] == 1:
                    slot_P[p] = NONE
                    if c < senders:
                        slot_P[p], lone_P[lone] = ALONE - lone, p
                        lone += 1
                    continue
                if room.place_J[j] == NONE:
                    room.place_J[j] = slots
                    if of_group and room.widest_group_J[j] == group and room.widest_J[j] == room.crossed_J[j]:
                        room.place_J[j] = room.widest_slot_J[j]
                    else:
                        link_Z[slots], owner_Z[slots] = j, c
                        slots += 1
                    slot_Y[listed] = room.place_J[j]
                    listed += 1
                slot_P[p] = room.place_J[j]
        ends_4C[1, c], ends_4C[3, c] = listed, lone
        # A group has what its senders have, tails and all; what its ranks have only where there are no tails.
        may_be = c >= senders or (c < n_ranks and crowds.by_group and not has_tails)
        _clear(c, crowds, links, room, group if may_be else NONE)
    visits, lone_V, group_visits = _visits_by_kind(
        crowds, links, n_ranks, n_groups, first_M1, slot_P, owner_Z, has_tails
    )
    of_lone = _lone(crowds, links, first_M1, lone_P[:lone], ends_4C[2], ends_4C[3], lone_V)
    return Slots(link_Z[:slots].copy(), ends_4C[0], ends_4C[1], slot_Y[:listed].copy(), visits, group_visits, of_lone)


@inner
def _lone(crowds: Crowds, links: Links, first_M1: Int, lone_P: Int, first_C: Int, end_C: Int, visits: Visits) -> Lone:
    """Say of lone slots what `Lone` says."""
    n = len(lone_P)
    crowd_L, link_L = np.empty(n, np.int32), np.empty(n, np.int32)
    member_L, pair_L = np.empty(n, np.int32), np.empty(n, np.int32)
    for c in range(len(first_C)):
        m = crowds.first_C1[c]
        for i in range(first_C[c], end_C[c]):
            while first_M1[m + 1] <= lone_P[i]:  # they stand in the order of members
                m += 1
            x = links.offsets_F1[crowds.flow_M[m]] + lone_P[i] - first_M1[m]
            crowd_L[i], link_L[i], member_L[i], pair_L[i] = c, links.link_X[x], m, x
    return Lone(first_C, end_C, crowd_L, link_L, member_L, pair_L, visits.first_F1, visits.slot_V)


@inner
def _pairs_before(flow_M: Int, offsets_F1: Int) -> Int:
    first_M1 = np.zeros(len(flow_M) + 1, np.int64)
    for m in range(len(flow_M)):
        first_M1[m + 1] = first_M1[m] + offsets_F1[flow_M[m] + 1] - offsets_F1[flow_M[m]]
    return first_M1


@inner
def _count(c: int, crowds: Crowds, links: Links, room: _Room) -> None:
    """Count the flows of a crowd on each link."""
    for m in range(crowds.first_C1[c], crowds.first_C1[c + 1]):
        f = crowds.flow_M[m]
        for x in range(links.offsets_F1[f], links.offsets_F1[f + 1]):
            room.crossed_J[links.link_X[x]] += 1
            room.place_J[links.link_X[x]] = NONE


@inner
def _clear(c: int, crowds: Crowds, links: Links, room: _Room, group: int) -> None:
    """Forget a crowd's counts; keep what slots may be those of its group, if it has one."""
    for m in range(crowds.first_C1[c], crowds.first_C1[c + 1]):
        f = crowds.flow_M[m]
        for x in range(links.offsets_F1[f], links.offsets_F1[f + 1]):
            j = links.link_X[x]
            if group != NONE and room.crossed_J[j] > max(1, room.widest_J[j]):
                room.widest_J[j], room.widest_slot_J[j] = room.crossed_J[j], room.place_J[j]
                room.widest_group_J[j] = group
            room.crossed_J[j] = 0


@inner
def _visits_by_kind(
    crowds: Crowds,
    links: Links,
    n_ranks: int,
    n_groups: int,
    first_M1: Int,
    slot_P: Int32,
    owner_Z: Int32,
    has_tails: bool,
) -> tuple[Visits, Visits, Visits]:
    """The visits to slots, to lone ones, and to those of groups."""
    n_flows = len(links.offsets_F1) - 1
    kind_P, first_3F1 = np.zeros(len(slot_P), np.int8), np.zeros((3, n_flows + 1), np.int64)
    for c in range(len(crowds.first_C1) - 1):
        of_group = n_ranks <= c < n_ranks + n_groups
        for m in range(crowds.first_C1[c], crowds.first_C1[c + 1]):
            after = crowds.flow_M[m] + 1
            for p in range(first_M1[m], first_M1[m + 1]):
                slot = slot_P[p]
                kind_P[p] = (slot >= 0 and owner_Z[slot] == c) + 2 * (slot <= ALONE) + 4 * (slot >= 0 and of_group)
                for kind in range(3):
                    first_3F1[kind, after] += (kind_P[p] >> kind) & 1
    for f in range(n_flows):
        for kind in range(3):
            first_3F1[kind, f + 1] += first_3F1[kind, f]
    return (
        _visits(0, kind_P, first_3F1[0].copy(), crowds, links, first_M1, slot_P, has_tails),
        _visits(1, kind_P, first_3F1[1].copy(), crowds, links, first_M1, slot_P, False),
        _visits(2, kind_P, first_3F1[2].copy(), crowds, links, first_M1, slot_P, False),
    )


@inner
def _visits(
    kind: int,
    kind_P: Int,
    first_F1: Int,
    crowds: Crowds,
    links: Links,
    first_M1: Int,
    slot_P: Int32,
    has_tails: bool,
) -> Visits:
    n, put_F = first_F1[-1], first_F1.copy()
    slot_V, pair_V = np.empty(n, np.int32), np.empty(n, np.int32)
    member_V = np.empty(n if has_tails else 0, np.int32)
    for m in range(len(crowds.flow_M)):
        f = crowds.flow_M[m]
        for p in range(first_M1[m], first_M1[m + 1]):
            if (kind_P[p] >> kind) & 1:
                v = put_F[f]
                put_F[f] += 1
                slot_V[v] = ALONE - slot_P[p] if kind == 1 else slot_P[p]
                pair_V[v] = links.offsets_F1[f] + p - first_M1[m]
                if has_tails:
                    member_V[v] = m
    return Visits(first_F1, slot_V, member_V, pair_V)
