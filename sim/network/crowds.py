"""Who may wait for which flows together, compiled: directly, or through the relays that feed them.

A *crowd* is a set of flows of which somebody waits for every one: first the crowds of the single ranks, then those of
the EP groups (some rank of the group waits for it), then those of the senders (the flows that one rank starts). They
are found once for all possible flows of a template; how long somebody still waits after a flow of an exchange has
ended, `tails` says, and it is minus infinity where nobody waits for it there.

Axes: F flow, R rank, K EP group, C crowd, M (crowd, flow) member, first of the ranks, then of the groups, then of the
senders; W place by a number, U (member, member that feeds it) pair, O (rank, origin of what it waits for) pair.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner
from moecast.sim.program import Float, Int, Int32

Bools = npt.NDArray[np.bool_]


class Fed(NamedTuple):
    """Which flows feed which, as a CSR, and an order in which parents stand before their children."""

    parents_F1: Int
    parent_R: Int32
    order_F: Int


class Crowds(NamedTuple):
    """The flows of each crowd, as a CSR.

    Parameters
    ----------
    first_C1, flow_M
        Of the ranks, whoever is fed stands before what feeds it.
    up_M1, up_U
        Members of the same rank that feed one of a rank, in the order of its parents.
    group_M
        The same flow's member of the rank's group, for members of ranks; of its sender's group, for those of senders.
    fed_F
        Whether others feed a flow.
    by_group
        Whether whoever sends a flow is of the group of whoever waits for it, and of whoever sends what feeds it.
    """

    first_C1: Int
    flow_M: Int
    up_M1: Int
    up_U: Int
    group_M: Int
    fed_F: Bools
    by_group: bool


@entry
def find_crowds(source_F: Int32, waiter_F: Int32, fed: Fed, group_R: Int32, n_groups: int, barrier: bool) -> Crowds:
    """Find the crowds of flows; behind a barrier all that a group starts counts as waited for by it.

    Of a sender only the flows count that it starts itself, unfed, and its own group waits for.
    """
    n_ranks, n_flows = len(group_R), len(source_F)
    first_R1, flow_M, up_M1, up_U = _of_ranks(waiter_F, fed, n_ranks)
    group_K1, rank_W = by_number(group_R, n_groups)
    if barrier:
        first_K1, of_groups = by_number(group_R[source_F], n_groups)
        above_M = np.zeros(len(flow_M), np.int64)
    else:
        first_K1, of_groups, above_M = _once_per_group(first_R1, flow_M, n_flows, group_K1, rank_W)
    own_F = np.full(n_flows, -1, np.int64)
    for k in range(n_groups):
        for m in range(first_K1[k], first_K1[k + 1]):
            f = of_groups[m]
            if fed.parents_F1[f] == fed.parents_F1[f + 1] and group_R[source_F[f]] == k:
                own_F[f] = m
    fed_F, by_group = _by_group(source_F, waiter_F, fed, group_R)
    sender_F = np.where(own_F >= 0, source_F, np.int32(-1))
    first_S1, of_senders = by_number(sender_F, n_ranks)
    n, of = len(flow_M), len(of_groups)
    first_C1 = np.concatenate((first_R1, n + first_K1[1:], n + of + first_S1[1:]))
    group_M = np.concatenate((n + above_M, np.arange(n, n + of), n + own_F[of_senders]))
    return Crowds(first_C1, np.concatenate((flow_M, of_groups, of_senders)), up_M1, up_U, group_M, fed_F, by_group)


@inner
def _by_group(source_F: Int32, waiter_F: Int32, fed: Fed, group_R: Int32) -> tuple[Bools, bool]:
    fed_F, by_group = np.zeros(len(source_F), np.bool_), True
    for f in range(len(source_F)):
        fed_F[f], group = fed.parents_F1[f] < fed.parents_F1[f + 1], group_R[source_F[f]]
        by_group = by_group and (waiter_F[f] < 0 or group_R[waiter_F[f]] == group)
        for r in range(fed.parents_F1[f], fed.parents_F1[f + 1]):
            by_group = by_group and group_R[source_F[fed.parent_R[r]]] == group
    return fed_F, by_group


@entry
def by_sender(source_F: Int32, n_ranks: int) -> tuple[Int, Int]:
    """The flows of each sender, as a CSR."""
    return by_number(source_F, n_ranks)


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
def _of_ranks(waiter_F: Int32, fed: Fed, n_ranks: int) -> tuple[Int, Int, Int, Int]:
    """For each rank the flows that it waits for and those that feed them, however far back; and who feeds whom."""
    n = len(waiter_F)
    direct_R1, direct_W = by_number(waiter_F, n_ranks)
    if not len(fed.parent_R):
        return direct_R1, direct_W, np.zeros(1, np.int64), np.empty(0, np.int64)
    place_F = np.empty(n, np.int64)
    for i in range(n):
        place_F[fed.order_F[i]] = i
    first_R1, flow_M = np.zeros(n_ranks + 1, np.int64), np.empty(2 * n, np.int64)
    seen_F, size = np.full(n, -1, np.int64), 0
    for rank in range(n_ranks):
        first_R1[rank] = size
        flow_M = _room(flow_M, size + n)
        for w in range(direct_R1[rank], direct_R1[rank + 1]):
            seen_F[direct_W[w]], flow_M[size] = rank, direct_W[w]
            size += 1
        # What has been appended is looked at in turn, and appends what feeds it.
        seen = first_R1[rank]
        while seen < size:
            f = flow_M[seen]
            seen += 1
            for r in range(fed.parents_F1[f], fed.parents_F1[f + 1]):
                p = fed.parent_R[r]
                if seen_F[p] != rank:
                    seen_F[p], flow_M[size] = rank, p
                    size += 1
        # Children first: then what they say of their parents is known when these are looked at.
        backwards = np.sort(-place_F[flow_M[first_R1[rank] : size]])
        for i in range(len(backwards)):
            flow_M[first_R1[rank] + i] = fed.order_F[-backwards[i]]
    first_R1[n_ranks] = size
    up_M1, up_U = _feeders(first_R1, flow_M[:size], fed, n)
    return first_R1, flow_M[:size].copy(), up_M1, up_U


@inner
def _room(value_M: Int, size: int) -> Int:
    if size <= len(value_M):
        return value_M
    longer_M = np.empty(2 * size, np.int64)  # doubled, so that few copies are made
    longer_M[: len(value_M)] = value_M
    return longer_M


@inner
def _feeders(first_R1: Int, flow_M: Int, fed: Fed, n_flows: int) -> tuple[Int, Int]:
    """The members that feed each member of a rank, as a CSR."""
    up_M1 = np.zeros(len(flow_M) + 1, np.int64)
    for m in range(len(flow_M)):
        up_M1[m + 1] = up_M1[m] + fed.parents_F1[flow_M[m] + 1] - fed.parents_F1[flow_M[m]]
    up_U, at_F = np.empty(up_M1[-1], np.int64), np.empty(n_flows, np.int64)
    for rank in range(len(first_R1) - 1):
        for m in range(first_R1[rank], first_R1[rank + 1]):
            at_F[flow_M[m]] = m
        for m in range(first_R1[rank], first_R1[rank + 1]):
            first = fed.parents_F1[flow_M[m]]
            for u in range(up_M1[m], up_M1[m + 1]):
                up_U[u] = at_F[fed.parent_R[first + u - up_M1[m]]]
    return up_M1, up_U


@inner
def _once_per_group(first_R1: Int, flow_M: Int, n_flows: int, group_K1: Int, rank_W: Int) -> tuple[Int, Int, Int]:
    """The flows of each group, each once, as a CSR; and where in it the members of its ranks stand."""
    seen_F, at_F = np.full(n_flows, -1, np.int64), np.empty(n_flows, np.int64)
    above_M, of_groups = np.empty(len(flow_M), np.int64), np.empty(len(flow_M), np.int64)
    first_K1, size = np.zeros(len(group_K1), np.int64), 0
    for k in range(len(group_K1) - 1):
        for w in range(group_K1[k], group_K1[k + 1]):
            for m in range(first_R1[rank_W[w]], first_R1[rank_W[w] + 1]):
                f = flow_M[m]
                # The group that saw a flow last: nothing is cleared between groups.
                if seen_F[f] != k:
                    seen_F[f], at_F[f], of_groups[size] = k, size, f
                    size += 1
                above_M[m] = at_F[f]
        first_K1[k + 1] = size
    return first_K1, of_groups[:size].copy(), above_M


@entry
def tails(
    crowds: Crowds,
    fed: Fed,
    n_groups: int,
    barrier: bool,
    waiter_F: Int32,
    bytes_F: Float,
    alone_F: Float,
    delay_F: Float,
    tail_F: Float,
) -> tuple[Float, Float]:
    """The least times from the end and from the start of each member [M] until whoever waits for it may leave.

    Minus infinity: nobody waits. The second are known of members of ranks only.
    """
    n_ranks = (len(crowds.first_C1) - 1 - n_groups) // 2
    of_ranks, of_senders = crowds.first_C1[n_ranks], crowds.first_C1[n_ranks + n_groups]
    tail_M, span_M = np.full(len(crowds.flow_M), -np.inf), np.full(of_ranks, -np.inf)
    for rank in range(n_ranks):
        for m in range(crowds.first_C1[rank], crowds.first_C1[rank + 1]):
            f = crowds.flow_M[m]
            if waiter_F[f] == rank and bytes_F[f] >= 0:
                tail_M[m], span_M[m] = max(tail_M[m], 0.0), max(span_M[m], alone_F[f])
            if tail_M[m] > -np.inf and len(fed.parent_R):
                _reach_back(m, crowds, bytes_F, alone_F, delay_F[f], tail_F[f], tail_M, span_M)
    if barrier:
        for m in range(of_ranks, of_senders):
            tail_M[m] = 0.0 if bytes_F[crowds.flow_M[m]] >= 0 else -np.inf
    else:
        for m in range(of_ranks):
            tail_M[crowds.group_M[m]] = max(tail_M[crowds.group_M[m]], tail_M[m])
    for m in range(of_senders, len(tail_M)):
        tail_M[m] = tail_M[crowds.group_M[m]]
    return tail_M, span_M


@inner
def _reach_back(
    m: int, crowds: Crowds, bytes_F: Float, alone_F: Float, delay: float, tail: float, tail_M: Float, span_M: Float
) -> None:
    """Lengthen the ways from what feeds a member to the rank that waits, if the one through it is longer."""
    for u in range(crowds.up_M1[m], crowds.up_M1[m + 1]):
        p = crowds.up_U[u]
        parent = crowds.flow_M[p]
        if bytes_F[parent] >= 0:
            tail_M[p] = max(tail_M[p], tail_M[m] + tail)
            span_M[p] = max(span_M[p], span_M[m] + delay, alone_F[parent] + tail_M[p])
