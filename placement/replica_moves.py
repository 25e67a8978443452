"""Moves that change how many replicas experts have: an item is given to another expert, or a hole is filled or left.

What such a move does to loads and copies is exact: the choices of both experts are dealt out anew, as the replica rule
says, on the tokens' own counts, and put back where the move is turned down.

Axes: V item, G rank, N domain, W window, B bucket, E expert, R replica, X choice, M choice that changes its bucket.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moecast.compiled import njit
from moecast.placement import swaps
from moecast.placement.holders import give_item, serving_item, share_load, take_item
from moecast.placement.priced_layer import enter_loads, settle


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def conversion_gain(layer: Any, v: int, expert: int) -> float:
    """Change of the cost when item `v` becomes a replica of `expert`; nothing is changed."""
    state, old = layer.state, np.int64(layer.state.expert_V[v])
    load_WG = np.zeros(state.own_WG.shape)
    # Taken off before the hand-over and put on after it: near and far depend on where all replicas stand.
    _add_loads(layer, old, load_WG, -1.0)
    _add_loads(layer, expert, load_WG, -1.0)
    _hand_over(layer, v, old, expert)
    _add_loads(layer, old, load_WG, 1.0)
    _add_loads(layer, expert, load_WG, 1.0)
    copies_WG = _foretold(layer.tokens, layer.ranks, layer, state.rank_V, old, expert)
    copies_WN = _foretold(layer.domain_tokens, layer.domains, layer, state.domain_V, old, expert)
    _hand_over(layer, v, expert, old)
    return _cost_after(layer, load_WG, copies_WG, copies_WN) - float(state.total[0])


@njit(cache=True, nogil=True)
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
        _serve_anew(layer.tokens, layer.ranks, layer, state.rank_V, one)
        _serve_anew(layer.domain_tokens, layer.domains, layer, state.domain_V, one)
    settle(layer)


@njit(cache=True, nogil=True)
def _hand_over(layer, v, giver, taker):  # type: ignore[no-untyped-def]
    if giver >= 0:
        take_item(layer.holders, giver, v)
    if taker >= 0:
        give_item(layer.holders, taker, v)
    layer.state.expert_V[v] = taker


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _foretold(tokens, counts, layer, bucket_V, old, new):  # type: ignore[no-untyped-def]
    """Count the copies to each bucket that come and go when two experts' choices are dealt out anew."""
    change_WB = np.zeros(counts.copies_WB.shape, np.int64)
    most = 0  # room for every choice of both: each may move
    for expert in (old, new):
        if expert >= 0:
            most += tokens.first_E1[expert + 1] - tokens.first_E1[expert]
    moved_M3 = np.empty((most, 3), np.int32)
    moved = 0
    for expert in (old, new):
        if expert >= 0:
            moved = _deal(tokens, counts, layer, bucket_V, expert, change_WB, moved_M3, moved)
    # Counts only go up and down, so that the order in which they are put back does not matter.
    for m in range(moved):
        counts.held_TB[moved_M3[m, 0], moved_M3[m, 1]] += 1
        counts.held_TB[moved_M3[m, 0], moved_M3[m, 2]] -= 1
    return change_WB


@njit(cache=True, nogil=True)
def _deal(tokens, counts, layer, bucket_V, expert, change_WB, moved_M3, moved):  # type: ignore[no-untyped-def]
    """Deal out an expert's choices; tokens' buckets follow, since the other expert's choices may be of the same tokens.

    Nothing else does, and what has moved is noted, to be put back.
    """
    for x in range(tokens.first_E1[expert], tokens.first_E1[expert + 1]):
        t = tokens.token_X[x]
        item = serving_item(layer.holders, layer.state.rank_V, expert, tokens.place_T[t], tokens.turn_X[x])
        origin, to = bucket_V[tokens.item_TK[t, tokens.k_X[x]]], bucket_V[item]
        if origin == to:
            continue
        w = tokens.window_T[t]
        # Only the last choice to leave a bucket takes a copy away, and only the first to come brings one.
        counts.held_TB[t, origin] -= 1
        change_WB[w, origin] -= counts.held_TB[t, origin] == 0
        change_WB[w, to] += counts.held_TB[t, to] == 0
        counts.held_TB[t, to] += 1
        moved_M3[moved, 0], moved_M3[moved, 1], moved_M3[moved, 2] = t, origin, to
        moved += 1
    return moved


@njit(cache=True, nogil=True)
def _serve_anew(tokens, counts, layer, bucket_V, expert):  # type: ignore[no-untyped-def]
    for x in range(tokens.first_E1[expert], tokens.first_E1[expert + 1]):
        t = tokens.token_X[x]
        item = serving_item(layer.holders, layer.state.rank_V, expert, tokens.place_T[t], tokens.turn_X[x])
        if item != tokens.item_TK[t, tokens.k_X[x]]:
            swaps.serve_by(tokens, counts, bucket_V, x, item)


@njit(cache=True, nogil=True)
def _cost_after(layer, load_WG, copies_WG, copies_WN):  # type: ignore[no-untyped-def]
    """What the layer costs with so much more load on each rank, and so many more copies to it and to its domain."""
    state, prices = layer.state, layer.prices
    shared = 0.0
    scenario_s = np.zeros(len(state.scenario_s))
    for w in range(len(state.slowest_W)):
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
