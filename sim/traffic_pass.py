"""The compiled pass behind `traffic`: who serves each choice, and what copies that takes.

It takes a block of tokens through all layers, and at each layer does one thing after another to the
whole block: which slot serves each choice, which copies travel, which pairs of choices meet on a
rank, and who is the next home. Between these steps stands `member_KT`, the member of the home's EP
group that serves each choice; 65535 stands for no choice.

Axes: T token, L MoE layer, E expert, K choice, G rank, S source rank, M member of S's EP group, A
domain in which the group stands, P slot of an EP group, R and X as in `ReplicaTable`.
"""

# numba functions carry no annotations: their types come from the call
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner
from moecast.sim.plan import Plan
from moecast.sim.replicas import ReplicaTable
from moecast.sim.sites import Sites
from moecast.traces.statistics.counting import count_pairs

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float = npt.NDArray[np.float64]

_GOLDEN = 0.6180339887498949
_BLOCK = 128  # tokens whose choices stay in the cache of a core


class Serving(NamedTuple):
    """Who serves which choice.

    Where every expert has one slot to go to, `sole_R` alone says which (slot << 16 | member). Else
    it is empty and the rest is used, as in `ReplicaTable`, with `next_SLE`: how far each (source,
    layer, expert) is in its candidates. `first_S` is the first member of each source's EP group.
    """

    experts: int
    first_S: Int
    row_of_S: Int
    sole_R: npt.NDArray[np.uint32]
    candidates_R: Int
    place_X: Int
    below_X: Float
    next_SLE: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, plan: Plan, table: ReplicaTable) -> Serving:
        """Take what a plan needs from its replica table."""
        replicas_R = table.candidates_R & 65535
        first_S = (plan.layout.server_G - plan.layout.member_G).astype(np.int64)
        if (replicas_R == 1).all():
            return cls(
                experts=plan.experts,
                first_S=first_S,
                row_of_S=table.row_of_S,
                sole_R=(table.place_X >> 16).astype(np.uint32),
                candidates_R=np.empty(0, np.int64),
                place_X=np.empty(0, np.int64),
                below_X=np.empty(0),
                next_SLE=np.empty((0, 0, 0), np.uint32),
            )
        rows = plan.layers * plan.experts
        next_SR = np.broadcast_to(np.arange(plan.ranks)[:, None], (plan.ranks, rows))
        if not len(table.below_X):  # with shares they count choices, and never start anew
            next_SR = next_SR % replicas_R[table.row_of_S[:, None] + np.arange(rows)]
        next_SLE = next_SR.astype(np.uint32).reshape(plan.ranks, plan.layers, plan.experts)
        return cls(
            experts=plan.experts,
            first_S=first_S,
            row_of_S=table.row_of_S,
            sole_R=np.empty(0, np.uint32),
            candidates_R=table.candidates_R,
            place_X=table.place_X,
            below_X=table.below_X,
            next_SLE=next_SLE,
        )


class Counts(NamedTuple):
    """What a pass fills in; the last three are empty unless tokens move on from layer to layer."""

    served_SLP: Int32
    copies_SLM: Int32
    domains_SLA: Int32
    back_SLM: Int32
    back_domains_SLA: Int32
    home_LT: Int32

    @classmethod
    def zeros(cls, plan: Plan, sites: Sites, staying: int | None) -> Counts:
        """Make room for the counts of a step, in which so many tokens move on, or none ever does (None)."""
        ranks, layers, members, places = plan.ranks, plan.layers, sites.n_members, sites.n_places
        movers = 0 if staying is None else ranks
        return cls(
            served_SLP=np.zeros((ranks, layers, plan.ep * plan.max_slots), np.int32),
            copies_SLM=np.zeros((ranks, layers, members), np.int32),
            domains_SLA=np.zeros((ranks, layers, places), np.int32),
            back_SLM=np.zeros((movers, layers, members), np.int32),
            back_domains_SLA=np.zeros((movers, layers, places), np.int32),
            home_LT=np.empty((0, 0) if staying is None else (layers + 1, staying), np.int32),
        )


_u = np.uint64  # numba checks signed indices for wrapping; unsigned ones are twice as fast here


@entry
def count_tokens_of_sources(experts_TLK, token_T, home_T, place_SM, serving, counts, stay):
    """Count a run of tokens; gives the pairs of choices at consecutive layers that meet on a rank, and all."""
    _, layers, choices = experts_TLK.shape
    none = np.uint16(65535)
    seen_M = np.zeros(counts.copies_SLM.shape[2], np.int64)
    seen_A = np.zeros(counts.domains_SLA.shape[2], np.int64)
    same, pairs = np.int64(0), np.int64(0)
    for start in range(0, len(token_T), _BLOCK):
        rows_T, at_T = token_T[start : start + _BLOCK], home_T[start : start + _BLOCK].copy()
        here_KT = np.empty((choices, len(rows_T)), np.uint16)
        before_KT = np.empty_like(here_KT)
        for layer in range(layers):
            if len(serving.sole_R) > 0:
                _serve_alone(experts_TLK, rows_T, at_T, layer, none, serving, counts.served_SLP, here_KT)
            else:
                _serve(experts_TLK, rows_T, at_T, layer, none, serving, counts.served_SLP, here_KT)
            mark = start * layers + layer * len(rows_T) + 1  # another for each (token, layer)
            _copy(here_KT, at_T, layer, none, place_SM, seen_M, seen_A, mark, counts)
            if layer > 0:
                meeting, made = count_pairs(before_KT, here_KT, none)
                same, pairs = same + meeting, pairs + made
            if stay:
                _move_on(here_KT, at_T, layer, none, place_SM, serving.first_S, counts)
                for t in range(len(at_T)):  # assigning a slice would take seconds to compile
                    counts.home_LT[layer + 1, start + t] = at_T[t]
            here_KT, before_KT = before_KT, here_KT
    return same, pairs


@entry
def rank_choices(experts_TLK, token_T, home_T, serving, served_SLP, rank_TLK):
    """Write who serves each choice, counted through the members of all EP groups; 65535 for none."""
    _, layers, choices = experts_TLK.shape
    none = np.uint16(65535)
    for start in range(0, len(token_T), _BLOCK):
        rows_T, at_T = token_T[start : start + _BLOCK], home_T[start : start + _BLOCK]
        member_KT = np.empty((choices, len(rows_T)), np.uint16)
        for layer in range(layers):
            if len(serving.sole_R) > 0:
                _serve_alone(experts_TLK, rows_T, at_T, layer, none, serving, served_SLP, member_KT)
            else:
                _serve(experts_TLK, rows_T, at_T, layer, none, serving, served_SLP, member_KT)
            for t in range(len(rows_T)):
                for k in range(choices):
                    at, member = _u(start + t), member_KT[k, t]
                    rank_TLK[at, layer, k] = none if member == none else np.uint16(serving.first_S[at_T[t]] + member)


@inner
def _serve_alone(experts_TLK, rows_T, at_T, layer, none, serving, served_SLP, member_KT):
    """Count the only slot of each choice, and find its member."""
    layers, slots, experts = served_SLP.shape[1], served_SLP.shape[2], serving.experts
    served_X = served_SLP.ravel()
    for t in range(len(rows_T)):
        row, rows = _u(rows_T[t]), _u(serving.row_of_S[at_T[t]] + layer * experts)
        to = _u((at_T[t] * layers + layer) * slots)
        for k in range(member_KT.shape[0]):
            expert = experts_TLK[row, _u(layer), _u(k)]
            if expert == np.uint16(65535):
                member_KT[k, t] = none
                continue
            place = serving.sole_R[rows + _u(expert)]
            served_X[to + _u(place >> 16)] += 1
            member_KT[k, t] = np.uint16(place)


@inner
def _serve(experts_TLK, rows_T, at_T, layer, none, serving, served_SLP, member_KT):
    """Take the next candidate for each choice: count its slot, and find its member."""
    layers, slots, experts = served_SLP.shape[1], served_SLP.shape[2], serving.experts
    served_X, next_X = served_SLP.ravel(), serving.next_SLE.ravel()
    weighted = len(serving.below_X) > 0
    for t in range(len(rows_T)):
        row, at = _u(rows_T[t]), at_T[t] * layers + layer
        rows, nexts, to = _u(serving.row_of_S[at_T[t]] + layer * experts), _u(at * experts), _u(at * slots)
        for k in range(member_KT.shape[0]):
            expert = _u(experts_TLK[row, _u(layer), _u(k)])
            if expert == _u(65535):
                member_KT[k, t] = none
                continue
            candidates = serving.candidates_R[rows + expert]
            i = next_X[nexts + expert]
            x = _u(candidates >> 16)
            if weighted:
                next_X[nexts + expert] = i + np.uint32(1)
                x += _u(_by_weight(serving.below_X, x, i))
            else:
                x += _u(i)
                i = np.uint32(i + np.uint32(1))
                # Kept below r as it goes, which saves a division for each choice.
                next_X[nexts + expert] = np.uint32(0) if i == (candidates & 65535) else i
            place = serving.place_X[x]
            served_X[to + _u(place >> 32)] += 1
            member_KT[k, t] = np.uint16((place >> 16) & 65535)


@inner
def _by_weight(below_X, x, i):
    point = (i + 0.5) * _GOLDEN
    point -= np.floor(point)
    candidate = 0
    while point >= below_X[x + _u(candidate)]:
        candidate += 1
    return candidate


@inner
def _copy(member_KT, at_T, layer, none, place_SM, seen_M, seen_A, mark, counts):
    """Count each member and each domain that a token goes to once; `mark` tells its visits from earlier ones."""
    layers, members, places = counts.copies_SLM.shape[1], len(seen_M), len(seen_A)
    copies_X, domains_X, place_X = counts.copies_SLM.ravel(), counts.domains_SLA.ravel(), place_SM.ravel()
    for t in range(member_KT.shape[1]):
        at = at_T[t] * layers + layer
        to_members, to_places, row = _u(at * members), _u(at * places), _u(at_T[t] * members)
        for k in range(member_KT.shape[0]):
            if member_KT[k, t] == none:
                continue
            member = _u(member_KT[k, t])
            place = _u(place_X[row + member])
            # No branch: whether a member is new to a token is nothing that a processor could
            # predict.
            copies_X[to_members + member] += seen_M[member] != mark + t
            domains_X[to_places + place] += seen_A[place] != mark + t
            seen_M[member] = seen_A[place] = mark + t


@inner
def _move_on(member_KT, at_T, layer, none, place_SM, first_S, counts):
    """Move each token to the rank of its first choice, and count a result there from each rank and domain it saw."""
    choices, tokens = member_KT.shape
    visited = np.empty(choices + 1, np.int64)
    for t in range(tokens):
        home = np.int64(at_T[t])
        next_home, first, seen = home, first_S[home], 1
        visited[0] = home - first
        for k in range(choices - 1, -1, -1):  # backwards, so that the first choice is the last to be the next home
            if member_KT[k, t] != none:
                visited[seen] = np.int64(member_KT[k, t])
                next_home = first + visited[seen]
                seen += 1
        for i in range(seen):
            place = place_SM[home, visited[i]]
            new_rank, new_place = True, True
            for j in range(i):  # a handful: to compare each with each is less than to clear marks
                new_rank &= visited[j] != visited[i]
                new_place &= place_SM[home, visited[j]] != place
            counts.back_SLM[next_home, layer, visited[i]] += new_rank
            counts.back_domains_SLA[next_home, layer, place] += new_place
        at_T[t] = next_home
