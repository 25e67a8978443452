"""The set of experts that a rank could hold for the least: copies of its tokens, less the prices of its experts.

Exact, by branch and bound over sets. Two facts bound the copies of a set before it is known whole:

*Coverage.* A token with x ≥ 1 of its choices in a set has a copy there. For whole x ≥ 0 and whole m
≥ 1,

    1[x ≥ 1] ≥ 2x / (m + 1) − x (x − 1) / (m (m + 1)),

since the right side less 1 is −(x − m) (x − m − 1) / (m (m + 1)), never above 0 between whole
numbers, and both sides are 0 at x = 0. Summed over tokens: copies ≥ 2 S₁ / (m + 1) − 2 S₂ / (m (m +
1)), with S₁ the choices of the set's experts and S₂ the tokens of its pairs of experts (Dawson and
Sankoff, 1967).

*Residue.* With the experts A chosen, those that follow add copies only of tokens that A does not
have yet: S₁ and S₂ are counted over these alone. Of r experts to come, each is in r − 1 of their
pairs, so that half of its r − 1 largest pair counts is at least its part of S₂. The sum of the r
least of these scores bounds whatever follows.

A limit to the load of a set is priced by a multiplier μ ≥ 0: scores with μ · load added, less μ ·
what load is left, are a bound too, for any μ (Lagrange); a few are tried.

Axes: T token, K choice, E expert, P place in the set, C candidate, X (expert, token) pair.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

MOST_M = 3  # of the coverage bound; larger ones were never the best for sets up to 16
MULTIPLIERS = 12  # tried for the load, halving an interval
NO_LIMIT = 1e300
FAR = 1e299  # a value of no set


class Priced(NamedTuple):
    """What pricing found.

    Parameters
    ----------
    least
        No set costs less.
    best
        Cost of the cheapest set seen below what was asked for; that where there was none.
    experts_NP
        Those met on the way there, the cheapest last: as many again that a linear program may want
        to know of.
    nodes
        Sets, whole or in part, that were looked at.
    """

    least: float
    best: float
    experts_NP: Int
    nodes: int


def cheapest_set(
    tokens: Any,
    price_E: Float,
    size: int,
    *,
    below: float,
    most_load: float = NO_LIMIT,
    most_nodes: int = 1 << 62,
    until_s: float = float("inf"),
) -> Priced:
    """Find the set of `size` experts that is cheapest, copies less prices, or prove that none is below `below`.

    Parameters
    ----------
    tokens
        `LayerTokens`.
    price_E
        What holding each expert pays.
    below
        Sets from there on are of no interest: `least` is never above it.
    most_load
        Choices that a set may serve.
    most_nodes, until_s
        After so many sets, or at that time of `time.process_time`, it stops with the bound that it
        has.
    """
    load_E = tokens.load_E.astype(np.float64)
    # first those with most pairs: the fewer are left, the better bounds
    order_E = np.argsort(-load_E, kind="stable")
    best, least, nodes = below, below, 0
    found: list[Int] = []
    for first in range(tokens.experts - size + 1):
        left = most_nodes - nodes
        if time.process_time() >= until_s:
            left = 0
        value, bound, looked, set_P = _branch(tokens, order_E, first, price_E, load_E, size, best, most_load, left)
        nodes += looked
        least = min(least, bound)
        if value < best:
            best = value
            found.append(np.sort(set_P))
    return Priced(min(least, best), best, np.array(found, np.int64).reshape(-1, size), nodes)


@entry
def _branch(  # type: ignore[no-untyped-def]  # noqa: C901  one loop over a stack: its parts share all of its state
    tokens, order_E, first, price_E, load_E, size, best, most_load, most_nodes
):
    """Sets that hold the expert `order_E[first]` and none before it; the best, a bound on all, and nodes."""
    experts = tokens.pairs_EE.shape[0]
    pairs_DEE = np.zeros((size + 1, experts, experts), np.int32)
    pairs_DEE[0] = tokens.pairs_EE
    held_T = np.zeros(tokens.expert_TK.shape[0], np.int32)
    cand_DC, left_D, at_D = (
        np.zeros((size + 1, experts), np.int64),
        np.zeros(size + 1, np.int64),
        np.zeros(size + 1, np.int64),
    )
    score_DC = np.zeros((size + 1, experts))
    cost_D, load_D = np.zeros(size + 1), np.zeros(size + 1)
    chosen_P, found_P = np.zeros(size, np.int64), np.zeros(size, np.int64)
    least, nodes, depth = best, 0, 0
    # Level 0 is the one expert that all sets of this branch hold.
    cand_DC[0, : experts - first] = order_E[first:]
    left_D[0] = experts - first
    score_DC[0, :] = -1e300
    while depth >= 0:
        rest = size - depth - 1  # to come behind the one that is chosen now
        i = at_D[depth]
        exhausted = i + rest >= left_D[depth] or (depth == 0 and i == 1)
        if not exhausted and depth > 0:
            # Scores rise: what follows is no cheaper than the next ones, so that the whole level
            # may end here.
            floor = cost_D[depth]
            for q in range(i, i + rest + 1):
                floor += score_DC[depth, q]
            exhausted = floor >= best
        if exhausted:
            depth -= 1
            if depth >= 0:
                _leave(tokens, chosen_P[depth], held_T)
            continue
        at_D[depth] += 1
        expert = cand_DC[depth, i]
        cost = cost_D[depth] + pairs_DEE[depth, expert, expert] - price_E[expert]
        load = load_D[depth] + load_E[expert]
        nodes += 1
        if nodes > most_nodes:
            # Whatever was not looked at yet: here and at every level above, whose scores bound it.
            if depth == 0:
                return best, min(least, _root_floor(tokens, order_E, first, price_E, size)), nodes, found_P
            for d in range(1, depth + 1):
                begin, floor = at_D[d] - (d == depth), cost_D[d]
                for q in range(begin, min(begin + size - d, left_D[d])):
                    floor += score_DC[d, q]
                least = min(least, floor)
            return best, least, nodes, found_P
        if load > most_load:
            continue
        if rest == 0:
            if cost < best:
                best = cost
                chosen_P[depth] = expert
                found_P[:] = chosen_P
            continue
        candidates_C = cand_DC[depth, i + 1 : left_D[depth]]
        _enter(tokens, expert, held_T, pairs_DEE[depth], pairs_DEE[depth + 1])
        chosen_P[depth] = expert
        pairs_EE = pairs_DEE[depth + 1]
        if rest <= 2:
            best = _last(
                pairs_EE, candidates_C, price_E, load_E, cost, most_load - load, rest, best, chosen_P, found_P, depth
            )
            _leave(tokens, expert, held_T)
            continue
        score_C = _scores(pairs_EE, candidates_C, price_E, load_E, rest, best - cost, most_load - load)
        if score_C[0] >= FAR:
            _leave(tokens, expert, held_T)
            continue
        order_C = np.argsort(score_C)
        for c in range(len(order_C)):
            cand_DC[depth + 1, c] = candidates_C[order_C[c]]
            score_DC[depth + 1, c] = score_C[order_C[c]]
        cost_D[depth + 1], load_D[depth + 1] = cost, load
        left_D[depth + 1], at_D[depth + 1] = len(order_C), 0
        depth += 1
    return best, min(least, best), nodes, found_P


@inner
def _root_floor(tokens, order_E, first, price_E, size):  # type: ignore[no-untyped-def]
    """Bound all sets of a branch at once."""
    sums = -1e300
    for m in range(1, MOST_M + 1):
        score_C = _scores_of_m(tokens.pairs_EE, order_E[first:], price_E, size, m)
        sums = max(sums, score_C[0] + np.sort(score_C[1:])[: size - 1].sum())
    return sums


@entry
def _enter(tokens, expert, held_T, pairs_EE, left_EE):  # type: ignore[no-untyped-def]
    """Take an expert in: its tokens are covered, and count no more in `left_EE`."""
    left_EE[:] = pairs_EE
    choices = tokens.expert_TK.shape[1]
    for x in range(tokens.offsets_E1[expert], tokens.offsets_E1[expert + 1]):
        t = tokens.token_X[x]
        held_T[t] += 1
        if held_T[t] > 1:
            continue
        for a in range(choices):
            u = tokens.expert_TK[t, a]
            if u < 0:
                continue
            for b in range(choices):
                v = tokens.expert_TK[t, b]
                if v >= 0:
                    left_EE[u, v] -= 1


@entry
def _leave(tokens, expert, held_T):  # type: ignore[no-untyped-def]
    for x in range(tokens.offsets_E1[expert], tokens.offsets_E1[expert + 1]):
        held_T[tokens.token_X[x]] -= 1


@entry
def _last(pairs_EE, candidates_C, price_E, load_E, cost, load_left, rest, best, chosen_P, found_P, depth):  # type: ignore[no-untyped-def]
    """Try every last expert, or every last two: their copies are counted, not bounded."""
    n = len(candidates_C)
    for i in range(n):
        u = candidates_C[i]
        cost_u = cost + pairs_EE[u, u] - price_E[u]
        if rest == 1:
            if cost_u < best and load_E[u] <= load_left:
                best = cost_u
                found_P[: depth + 1] = chosen_P[: depth + 1]
                found_P[depth + 1] = u
            continue
        for j in range(i + 1, n):
            v = candidates_C[j]
            both = cost_u + pairs_EE[v, v] - price_E[v] - pairs_EE[u, v]
            if both < best and load_E[u] + load_E[v] <= load_left:
                best = both
                found_P[: depth + 1] = chosen_P[: depth + 1]
                found_P[depth + 1] = u
                found_P[depth + 2] = v
    return best


@inner
def _scores_of_m(pairs_EE, candidates_C, price_E, rest, m):  # type: ignore[no-untyped-def]
    """Give each candidate its least part of the coverage bound, less its price."""
    n = len(candidates_C)
    score_C, top = np.empty(n), np.zeros(rest)
    for i in range(n):
        u = candidates_C[i]
        top[:] = 0
        for j in range(n):
            pairs = pairs_EE[u, candidates_C[j]]
            if j != i and rest > 1 and pairs > top[rest - 2]:
                q = rest - 2
                while q > 0 and top[q - 1] < pairs:
                    top[q] = top[q - 1]
                    q -= 1
                top[q] = pairs
        score_C[i] = 2.0 * pairs_EE[u, u] / (m + 1) - price_E[u] - top[: rest - 1].sum() / (m * (m + 1))
    return score_C


@entry
def _scores(pairs_EE, candidates_C, price_E, load_E, rest, below, load_left):  # type: ignore[no-untyped-def]
    """Scores of which the `rest` least sum up to a bound; the first is `FAR` where nothing below can follow."""
    best_C, most = np.empty(0), -1e300
    for m in range(1, MOST_M + 1):
        score_C = _scores_of_m(pairs_EE, candidates_C, price_E, rest, m)
        bound = np.sort(score_C)[:rest].sum()
        if bound < below and load_left < FAR:
            bound = _with_load(score_C, candidates_C, load_E, rest, load_left, bound, below)
        if bound >= below:
            score_C[0] = 1e300
            return score_C
        if bound > most:
            best_C, most = score_C, bound
    return best_C


@inner
def _with_load(score_C, candidates_C, load_E, rest, load_left, bound, below):  # type: ignore[no-untyped-def]
    """Raise a bound by a price for the load, if that helps: concave in the price, which is sought by halving."""
    n = len(candidates_C)
    low, high = 0.0, 4.0
    priced_C = np.empty(n)
    for _ in range(MULTIPLIERS):
        price = (low + high) / 2
        for c in range(n):
            priced_C[c] = score_C[c] + price * load_E[candidates_C[c]]
        order_C = np.argsort(priced_C)
        value, load = -price * load_left, 0.0
        for q in range(rest):
            value += priced_C[order_C[q]]
            load += load_E[candidates_C[order_C[q]]]
        bound = max(bound, value)
        if bound >= below:
            return bound
        if load > load_left:  # the slope: a higher price would raise it
            low = price
        else:
            high = price
    return bound
