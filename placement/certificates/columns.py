"""Sets of experts that are worth a column, by local search: whole partitions, and single sets under given prices.

Nothing here is a bound; what is found is only cheaper or dearer, and never wrong.

Axes: T token, K choice, E expert, G rank, P place in a set, N start, X (expert, token) pair.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

HOT_COPIES, COLD_COPIES = 60.0, 1.0  # temperatures of annealing, in copies
OVER_COPIES = 3.0  # what a choice beyond the most load counts there
OVER_PRICE = 10.0  # and in the search for single sets


@entry
def copies_of(tokens: Any, experts_P: Int) -> int:
    """Tokens with a choice in the set."""
    held_T = np.zeros(tokens.expert_TK.shape[0], np.bool_)
    copies = 0
    for expert in experts_P:
        for x in range(tokens.offsets_E1[expert], tokens.offsets_E1[expert + 1]):
            copies += not held_T[tokens.token_X[x]]
            held_T[tokens.token_X[x]] = True
    return copies


@entry
def partition(tokens: Any, size_G: Int, most_load: float, proposals: int, seed: int) -> tuple[float, Int]:
    """Anneal a partition into ranks of `size_G` experts for few copies, by swaps.

    Returns
    -------
    Its copies, infinite where none within the most load was met, and the rank of each expert.
    """
    np.random.seed(seed)  # noqa: NPY002  numba's own generator, of this thread's compiled code
    experts, choices = tokens.pairs_EE.shape[0], tokens.expert_TK.shape[1]
    load_E = np.diff(tokens.offsets_E1).astype(np.float64)
    rank_E = _first_ranks(load_E, size_G, most_load < load_E.sum())
    held_TG = np.zeros((tokens.expert_TK.shape[0], len(size_G)), np.int8)
    load_G, copies, over = np.zeros(len(size_G)), 0.0, 0.0
    for expert in range(experts):
        load_G[rank_E[expert]] += load_E[expert]
    for t in range(held_TG.shape[0]):
        for k in range(choices):
            if tokens.expert_TK[t, k] >= 0:
                copies += held_TG[t, rank_E[tokens.expert_TK[t, k]]] == 0
                held_TG[t, rank_E[tokens.expert_TK[t, k]]] += 1
    for load in load_G:
        over += max(load - most_load, 0.0)
    best, best_E = copies if over <= 0 else np.inf, rank_E.copy()
    for step in range(proposals):
        warmth = HOT_COPIES * (COLD_COPIES / HOT_COPIES) ** (step / proposals)
        u, v = np.random.randint(experts), np.random.randint(experts)  # noqa: NPY002
        a, b = rank_E[u], rank_E[v]
        if a == b:
            continue
        more = load_E[v] - load_E[u]
        new_over = over - max(load_G[a] - most_load, 0.0) - max(load_G[b] - most_load, 0.0)
        new_over += max(load_G[a] + more - most_load, 0.0) + max(load_G[b] - more - most_load, 0.0)
        # Dear and not forbidden: swaps alone may not lead from one partition within the load to
        # another.
        worse = OVER_COPIES * (new_over - over)
        # Beyond that no difference of copies would let it pass, and counting them is what takes
        # time.
        if worse > 20 * warmth:
            continue
        added = _added(tokens, held_TG, u, v, a, b) + _added(tokens, held_TG, v, u, b, a)
        if added + worse <= 0 or np.random.random() < np.exp(-(added + worse) / warmth):  # noqa: NPY002
            copies, over = copies + added, new_over
            load_G[a] += more
            load_G[b] -= more
            rank_E[u], rank_E[v] = b, a
            _moved(tokens, held_TG, u, a, b)
            _moved(tokens, held_TG, v, b, a)
            if over <= 1e-9 and copies < best:  # kept by differences, whose roundings leave something
                best, best_E = copies, rank_E.copy()
    return best, best_E


@inner
def _first_ranks(load_E, size_G, even):  # type: ignore[no-untyped-def]
    """Hot experts together, where few copies are all that is asked for; else the next hottest to the lightest rank."""
    rank_E, free_G, load_G = np.empty(len(load_E), np.int64), size_G.copy(), np.zeros(len(size_G))
    rank = 0
    for expert in np.argsort(-load_E):
        if even:
            rank = -1
            for g in range(len(size_G)):
                if free_G[g] > 0 and (rank < 0 or load_G[g] < load_G[rank]):
                    rank = g
        else:
            while free_G[rank] == 0:
                rank += 1
        rank_E[expert] = rank
        free_G[rank] -= 1
        load_G[rank] += load_E[expert]
    return rank_E


@entry
def _added(tokens, held_TG, u, v, a, b):  # type: ignore[no-untyped-def]
    """Copies that u's going from rank a to b adds, where v comes the other way."""
    added = 0
    for x in range(tokens.offsets_E1[u], tokens.offsets_E1[u + 1]):
        t = tokens.token_X[x]
        both = False
        for k in range(tokens.expert_TK.shape[1]):
            both = both or tokens.expert_TK[t, k] == v
        if not both:
            added += (held_TG[t, b] == 0) - (held_TG[t, a] == 1)
    return added


@entry
def _moved(tokens, held_TG, expert, origin, to):  # type: ignore[no-untyped-def]
    for x in range(tokens.offsets_E1[expert], tokens.offsets_E1[expert + 1]):
        held_TG[tokens.token_X[x], origin] -= 1
        held_TG[tokens.token_X[x], to] += 1


@entry
def cheap_sets(tokens: Any, price_E: Float, starts_NP: Int, most_load: float) -> tuple[Int, Int]:
    """Descend from each start by the best exchange of one expert, as long as copies less prices fall.

    Returns
    -------
    Copies [N] of the sets, and the sets [N, P], sorted; what is above the most load is left to the
    caller to drop.
    """
    load_E = np.diff(tokens.offsets_E1).astype(np.float64)
    copies_N, set_NP = np.zeros(len(starts_NP), np.int64), np.empty_like(starts_NP)
    for n in range(len(starts_NP)):
        set_P = starts_NP[n].copy()
        _descend(tokens, price_E, load_E, set_P, most_load)
        set_NP[n] = np.sort(set_P)
        copies_N[n] = copies_of(tokens, set_P)
    return copies_N, set_NP


@entry
def _descend(tokens, price_E, load_E, set_P, most_load):  # type: ignore[no-untyped-def]  # noqa: C901
    experts, choices = len(price_E), tokens.expert_TK.shape[1]
    inside_E, held_T, load = np.zeros(experts, np.bool_), np.zeros(tokens.expert_TK.shape[0], np.int64), 0.0
    for expert in set_P:
        inside_E[expert] = True
        load += load_E[expert]
        for x in range(tokens.offsets_E1[expert], tokens.offsets_E1[expert + 1]):
            held_T[tokens.token_X[x]] += 1
    enter_E, leave_E, both_EE = np.zeros(experts), np.zeros(experts), np.zeros((experts, experts))
    while True:
        enter_E[:], leave_E[:], both_EE[:] = 0, 0, 0
        for t in range(len(held_T)):
            if held_T[t] > 1:  # whichever expert goes or comes, this token has a copy here
                continue
            alone = -1
            for k in range(choices):
                expert = tokens.expert_TK[t, k]
                if expert >= 0 and inside_E[expert]:
                    alone = expert
            for k in range(choices):
                expert = tokens.expert_TK[t, k]
                if expert >= 0 and alone < 0:
                    enter_E[expert] += 1
                elif expert >= 0:
                    # its copy stays where this one comes as that one goes
                    both_EE[alone, expert] += 1
            if alone >= 0:
                leave_E[alone] += 1
        # smaller falls are rounding, and would go round in circles
        least, place, comes = -1e-7, -1, -1
        for p in range(len(set_P)):
            goes = set_P[p]
            for expert in range(experts):
                if inside_E[expert]:
                    continue
                after = load - load_E[goes] + load_E[expert]
                change = enter_E[expert] - leave_E[goes] + both_EE[goes, expert] - price_E[expert] + price_E[goes]
                # A set within the load stays so: beyond it most sets are cheaper, and none of them
                # is of use.
                if load <= most_load < after:
                    continue
                change += OVER_PRICE * (max(after - most_load, 0.0) - max(load - most_load, 0.0))
                if change < least:
                    least, place, comes = change, p, expert
        if place < 0:
            return
        goes = set_P[place]
        for x in range(tokens.offsets_E1[goes], tokens.offsets_E1[goes + 1]):
            held_T[tokens.token_X[x]] -= 1
        for x in range(tokens.offsets_E1[comes], tokens.offsets_E1[comes + 1]):
            held_T[tokens.token_X[x]] += 1
        inside_E[goes], inside_E[comes], set_P[place] = False, True, comes
        load += load_E[comes] - load_E[goes]
