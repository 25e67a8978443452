"""Moves that change how many replicas experts have: an item is given to another expert, or a hole is filled or left.

What such a move does to loads and copies is exact: the choices of both experts are dealt out anew,
as the replica rule says, to sets of tokens made for it.

Axes: V item, G rank, N domain, W window, B bucket, E expert, R replica or its row, X choice, I word
of 64 tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moecast.compiled import inner
from moecast.placement import swaps
from moecast.placement.holders import give_item, in_turn, share_load, take_item
from moecast.placement.priced_layer import enter_loads, settle


@inner
def convertible(layer: Any, v: int, expert: int) -> bool:
    """Whether item `v` may become a replica of `expert` (-1: a hole): none is lost, no rank holds one twice."""
    state, old = layer.state, layer.state.expert_V[v]
    if expert == old:
        return False
    if old >= 0 and layer.holders.replicas_E[old] < 2:
        return False
    in_use = state.spare[3] + (expert >= 0) - (old >= 0)
    if in_use < state.spare[1] or in_use > state.spare[2]:
        return False
    return expert < 0 or state.holds_EG[expert, state.rank_V[v]] == 0


@inner
def conversion_gain(layer: Any, v: int, expert: int) -> float:
    """Change of the cost when item `v` becomes a replica of `expert`; nothing is changed."""
    state, old = layer.state, np.int64(layer.state.expert_V[v])
    # Loads before and after, not those of `v` alone: each other replica of both experts gets a
    # share more, or less.
    load_WG = np.zeros(state.own_WG.shape)
    _add_loads(layer, old, load_WG, -1.0)
    _add_loads(layer, expert, load_WG, -1.0)
    _hand_over(layer, v, old, expert)  # only in the lists of holders, and back below
    _add_loads(layer, old, load_WG, 1.0)
    _add_loads(layer, expert, load_WG, 1.0)
    row_V = np.full(len(state.rank_V), -1, np.int64)
    served_RI = _dealt(layer, v, old, expert, row_V)
    copies_WG = _foretold(layer.served.served_VI, layer.ranks, state.rank_V, row_V, served_RI)
    copies_WN = _foretold(layer.served.served_VI, layer.domains, state.domain_V, row_V, served_RI)
    _hand_over(layer, v, expert, old)
    return _cost_after(layer, load_WG, copies_WG, copies_WN) - float(state.total[0])


@inner
def convert(layer: Any, v: int, expert: int) -> None:
    """Let item `v` become a replica of `expert` (-1: a hole)."""
    state, old, rank = layer.state, np.int64(layer.state.expert_V[v]), layer.state.rank_V[v]
    _hand_over(layer, v, old, expert)
    layer.prices.load_VW[v] = 0.0
    for one, change in ((old, -1), (expert, 1)):
        if one < 0:
            continue
        state.holds_EG[one, rank] += change
        state.spare[3] += change
        enter_loads(layer, one)
        _serve_anew(layer.tokens, layer.served, layer, one)
    _gather_all(layer.served.served_VI, layer.ranks, state.rank_V, v, old, expert, layer.holders)
    _gather_all(layer.served.served_VI, layer.domains, state.domain_V, v, old, expert, layer.holders)
    settle(layer)  # afresh: replicas of two experts stand anywhere, and few such moves are taken


@inner
def _hand_over(layer, v, giver, taker):  # type: ignore[no-untyped-def]
    if giver >= 0:
        take_item(layer.holders, giver, v)
    if taker >= 0:
        give_item(layer.holders, taker, v)
    layer.state.expert_V[v] = taker


@inner
def _add_loads(layer, expert, load_WG, sign):  # type: ignore[no-untyped-def]
    """Add what an expert's replicas cost their ranks, or take it away."""
    if expert < 0:
        return
    replicas = layer.holders.replicas_E[expert]
    load_RW = np.empty((replicas, load_WG.shape[0]))
    share_load(layer.holders, layer.state.rank_V, expert, load_RW)
    for r in range(replicas):
        g = layer.state.rank_V[layer.holders.item_ER[expert, r]]
        for w in range(load_WG.shape[0]):
            load_WG[w, g] += sign * load_RW[r, w]


@inner
def _dealt(layer, v, old, new, row_V):  # type: ignore[no-untyped-def]
    """Deal two experts' choices out anew, to sets made for it: a row for each of their items, and one for item `v`."""
    holders = layer.holders
    row_V[v], rows = 0, 1  # row 0 stays empty where `v` becomes a hole: it serves nobody then
    for expert in (old, new):
        if expert >= 0:
            for r in range(holders.replicas_E[expert]):
                item = np.int64(holders.item_ER[expert, r])
                if row_V[item] < 0:
                    row_V[item], rows = rows, rows + 1
    served_RI = np.zeros((rows, layer.served.served_VI.shape[1]), np.uint64)
    for expert in (old, new):
        if expert >= 0:
            _deal(layer.tokens, layer.served.bit_T, holders, layer.state.rank_V, expert, row_V, served_RI)
    return served_RI


@inner
def _deal(tokens, bit_T, holders, rank_V, expert, row_V, served_RI):  # type: ignore[no-untyped-def]
    """Enter who would serve each of an expert's choices, in the rows of its items."""
    row_QR, number_Q = in_turn(holders, rank_V, expert)
    for place in range(len(number_Q)):  # looked up once here, not for each of the expert's choices
        for i in range(number_Q[place]):
            row_QR[place, i] = row_V[holders.item_ER[expert, row_QR[place, i]]]
    for x in range(tokens.first_E1[expert], tokens.first_E1[expert + 1]):
        t = tokens.token_X[x]
        place = tokens.place_T[t]
        swaps.flip(served_RI, row_QR[place, tokens.turn_X[x] % number_Q[place]], bit_T[t])


@inner
def _foretold(served_VI, sets, bucket_V, row_V, served_RI):  # type: ignore[no-untyped-def]
    """Count the copies to each bucket that come and go when the items with rows serve those instead."""
    change_WB = np.zeros(sets.copies_WB.shape, np.int64)
    done_B = np.zeros(sets.copies_WB.shape[1], np.bool_)
    any_I = np.empty(sets.any_BI.shape[1], np.uint64)
    for item in range(len(row_V)):
        bucket = bucket_V[item]
        if row_V[item] < 0 or done_B[bucket]:  # nothing changes here, or all of it was counted with another item
            continue
        done_B[bucket] = True
        any_I[:] = np.uint64(0)
        for v in range(len(bucket_V)):
            if bucket_V[v] == bucket:  # items of other experts serve those that they served
                _join(any_I, served_VI if row_V[v] < 0 else served_RI, v if row_V[v] < 0 else row_V[v])
        for w in range(change_WB.shape[0]):
            copies = swaps.members(any_I, sets.first_W1[w], sets.first_W1[w + 1])
            change_WB[w, bucket] = copies - sets.copies_WB[w, bucket]
    return change_WB


@inner
def _join(any_I, set_VI, v):  # type: ignore[no-untyped-def]
    for i in range(len(any_I)):
        any_I[i] |= set_VI[v, i]


@inner
def _serve_anew(tokens, served, layer, expert):  # type: ignore[no-untyped-def]
    turn_QR, number_Q = in_turn(layer.holders, layer.state.rank_V, expert)
    for x in range(tokens.first_E1[expert], tokens.first_E1[expert + 1]):
        t, k = tokens.token_X[x], tokens.k_X[x]
        place = tokens.place_T[t]
        item = np.int64(layer.holders.item_ER[expert, turn_QR[place, tokens.turn_X[x] % number_Q[place]]])
        old = np.int64(tokens.item_TK[t, k])
        if item != old:
            swaps.flip(served.served_VI, old, served.bit_T[t])
            swaps.flip(served.served_VI, item, served.bit_T[t])
            tokens.item_TK[t, k] = item


@inner
def _gather_all(served_VI, sets, bucket_V, v, old, new, holders):  # type: ignore[no-untyped-def]
    """Gather every bucket that a replica of one of two experts stands in, and that of item `v`."""
    done_B = np.zeros(sets.copies_WB.shape[1], np.bool_)
    done_B[bucket_V[v]] = True
    swaps.gather(served_VI, sets, bucket_V, bucket_V[v])
    for expert in (old, new):
        if expert >= 0:
            for r in range(holders.replicas_E[expert]):
                bucket = bucket_V[holders.item_ER[expert, r]]
                if not done_B[bucket]:
                    done_B[bucket] = True
                    swaps.gather(served_VI, sets, bucket_V, bucket)


@inner
def _cost_after(layer, load_WG, copies_WG, copies_WN):  # type: ignore[no-untyped-def]
    """What the layer costs with so much more load on each rank, and so many more copies to it and to its domain."""
    state, prices = layer.state, layer.prices
    shared = 0.0
    scenario_s = np.zeros(len(state.scenario_s))
    for w in range(len(state.slowest_W)):
        # All ranks: the three slowest that are kept may all be among those that change, unlike with
        # a swap of two.
        slowest = 0.0
        for g in range(len(state.domain_G)):
            n = state.domain_G[g]
            own = state.own_WG[w, g] + load_WG[w, g] + prices.copy_W[w] * copies_WG[w, g]
            slowest = max(slowest, own + state.entry_WN[w, n] + prices.domain_copy_W[w] * copies_WN[w, n])
            shared += prices.mean_W[w] * (layer.ranks.copies_WB[w, g] + copies_WG[w, g])
        for n in range(copies_WN.shape[1]):
            shared += prices.domain_mean_W[w] * (layer.domains.copies_WB[w, n] + copies_WN[w, n])
        scenario_s[state.scenario_W[w]] += slowest
    return shared + scenario_s.max()
