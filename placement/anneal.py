"""Simulated annealing of one layer: swaps of items between ranks, judged by the seconds of the slowest rank.

The cost of a window is that of its slowest rank, plus a share of the mean (see `moecast.placement.cost`); the layer's
cost is the sum over windows. Every proposal is judged exactly, from counts; only accepted ones touch the tokens.

Axes: V item, G rank, N domain, W window, E expert.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.compiled import njit
from moecast.placement import swaps

Float = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]

LEAST_GAIN = 1e-9  # of a layer's cost, or of the mean load: smaller gains are rounding


class Prices(NamedTuple):
    """What a window's ranks pay.

    Parameters
    ----------
    load_VW
        Seconds that an item's choices cost the rank it stands on.
    copy_W, domain_copy_W
        Seconds that a counted copy to a rank costs it, and that one to a domain costs each of the domain's ranks.
    mean_W, domain_mean_W
        Seconds that such a copy costs everybody: the sender's side, spread over all ranks.
    """

    load_VW: Float
    copy_W: Float
    domain_copy_W: Float
    mean_W: Float
    domain_mean_W: Float


class State(NamedTuple):
    """Where the items stand, and what is kept up to date with them.

    Parameters
    ----------
    rank_V, domain_V, best_V
        Rank and domain of each item; the ranks in the best state seen.
    expert_V
        Its expert, -1 for a hole.
    pinned_V
        Whether it must stay in its domain.
    domain_G
        Domain of each rank.
    holds_EG
        Replicas of an expert on a rank, 0 or 1.
    seconds_WG, slowest_W
        What each rank pays, and the largest of them.
    total
        [current cost, best cost].
    random
        [state of the random numbers].
    """

    rank_V: Int32
    domain_V: Int32
    best_V: Int32
    expert_V: Int32
    pinned_V: npt.NDArray[np.bool_]
    domain_G: Int32
    holds_EG: npt.NDArray[np.int8]
    seconds_WG: Float
    slowest_W: Float
    total: Float
    random: npt.NDArray[np.uint64]


class Layer(NamedTuple):
    """One layer to be searched: its tokens, what they cost, and where its items stand.

    Parameters
    ----------
    tokens, domain_tokens
        Those whose copies to ranks and to domains cost something.
    prices
        What windows' ranks pay.
    ranks, domains
        Counts of the tokens, with ranks and with domains as buckets.
    state
        Where the items stand.
    """

    tokens: swaps.Tokens
    domain_tokens: swaps.Tokens
    prices: Prices
    ranks: swaps.Counts
    domains: swaps.Counts
    state: State

    @classmethod
    def of(cls, tokens: swaps.Tokens, domain_tokens: swaps.Tokens, prices: Prices, state: State) -> Layer:
        """Count the tokens as the items stand."""
        windows, n_ranks = state.seconds_WG.shape
        ranks = swaps.count(tokens, state.rank_V, n_ranks, windows)
        domains = swaps.count(domain_tokens, state.domain_V, int(state.domain_G.max()) + 1, windows)
        layer = cls(tokens, domain_tokens, prices, ranks, domains, state)
        settle(layer)
        return layer


@njit(cache=True)
def settle(layer: Any) -> None:
    """Work out what the ranks pay from the counts, afresh; the best state becomes this one where it is better."""
    prices, ranks, domains, state = layer.prices, layer.ranks, layer.domains, layer.state
    # Afresh, not by differences: roundings would add up over millions of swaps, and few proposals come this far.
    n_windows, n_ranks = state.seconds_WG.shape  # loops, not slices: they compile in a third of the time
    total = 0.0
    for w in range(n_windows):
        for g in range(n_ranks):
            state.seconds_WG[w, g] = prices.copy_W[w] * ranks.copies_WB[w, g]
            state.seconds_WG[w, g] += prices.domain_copy_W[w] * domains.copies_WB[w, state.domain_G[g]]
            total += prices.mean_W[w] * ranks.copies_WB[w, g]
        for n in range(domains.copies_WB.shape[1]):
            total += prices.domain_mean_W[w] * domains.copies_WB[w, n]
    for v in range(len(state.rank_V)):
        for w in range(n_windows):
            state.seconds_WG[w, state.rank_V[v]] += prices.load_VW[v, w]
    for w in range(n_windows):
        state.slowest_W[w] = 0.0
        for g in range(n_ranks):
            state.slowest_W[w] = max(state.slowest_W[w], state.seconds_WG[w, g])
        total += state.slowest_W[w]
    state.total[0] = total
    # Annealing ends in some state, seldom in the best that it passed through.
    if total < state.total[1]:
        state.total[1] = total
        for v in range(len(state.rank_V)):
            state.best_V[v] = state.rank_V[v]


@njit(cache=True)
def allowed(state: Any, a: int, b: int) -> bool:
    """Whether two items may change places: different ranks, no expert twice on a rank, pinned items stay at home."""
    rank_a, rank_b = state.rank_V[a], state.rank_V[b]
    if rank_a == rank_b or state.expert_V[a] == state.expert_V[b]:  # two holes, too, would change nothing
        return False
    if state.domain_V[a] != state.domain_V[b] and (state.pinned_V[a] or state.pinned_V[b]):
        return False
    expert_a, expert_b = state.expert_V[a], state.expert_V[b]
    if expert_a >= 0 and state.holds_EG[expert_a, rank_b]:
        return False
    return not (expert_b >= 0 and state.holds_EG[expert_b, rank_a])


@njit(cache=True)
def gain(layer: Any, a: int, b: int) -> float:
    """Change of the cost when items `a` and `b` change places."""
    prices, ranks, domains, state = layer.prices, layer.ranks, layer.domains, layer.state
    rank_a, rank_b = state.rank_V[a], state.rank_V[b]
    domain_a, domain_b = state.domain_V[a], state.domain_V[b]
    n_windows, n_ranks = state.seconds_WG.shape
    change = 0.0
    for w in range(n_windows):
        # From counts, without touching the state: nearly all proposals are turned down.
        copies_a = swaps.added_copies(ranks, a, b, rank_a, w)
        copies_b = swaps.added_copies(ranks, b, a, rank_b, w)
        load = prices.load_VW[b, w] - prices.load_VW[a, w]
        add_a = prices.copy_W[w] * copies_a + load
        add_b = prices.copy_W[w] * copies_b - load
        change += prices.mean_W[w] * (copies_a + copies_b)
        slowest = 0.0
        # Within a domain the copies to domains stay as they are, which halves the work.
        if domain_a == domain_b:
            # All ranks: who was slowest may be so no longer, and then the next one counts.
            for g in range(n_ranks):
                seconds = state.seconds_WG[w, g]
                if g == rank_a:
                    seconds += add_a
                elif g == rank_b:
                    seconds += add_b
                slowest = max(slowest, seconds)
        else:
            entering_a = swaps.added_copies(domains, a, b, domain_a, w)
            entering_b = swaps.added_copies(domains, b, a, domain_b, w)
            change += prices.domain_mean_W[w] * (entering_a + entering_b)
            for g in range(n_ranks):
                seconds = state.seconds_WG[w, g]
                if g == rank_a:
                    seconds += add_a
                elif g == rank_b:
                    seconds += add_b
                if state.domain_G[g] == domain_a:
                    seconds += prices.domain_copy_W[w] * entering_a
                elif state.domain_G[g] == domain_b:
                    seconds += prices.domain_copy_W[w] * entering_b
                slowest = max(slowest, seconds)
        change += slowest - state.slowest_W[w]
    return change


@njit(cache=True)
def apply(layer: Any, a: int, b: int) -> None:
    """Let items `a` and `b` change places."""
    state = layer.state
    rank_a, rank_b = state.rank_V[a], state.rank_V[b]
    if state.expert_V[a] >= 0:
        state.holds_EG[state.expert_V[a], rank_a] -= 1
        state.holds_EG[state.expert_V[a], rank_b] += 1
    if state.expert_V[b] >= 0:
        state.holds_EG[state.expert_V[b], rank_b] -= 1
        state.holds_EG[state.expert_V[b], rank_a] += 1
    swaps.swap(layer.tokens, layer.ranks, state.rank_V, a, b)
    if state.domain_V[a] != state.domain_V[b]:
        swaps.swap(layer.domain_tokens, layer.domains, state.domain_V, a, b)
    settle(layer)


@njit(cache=True)
def anneal(layer: Any, proposals: int, hot: float, cold: float) -> None:
    """Judge `proposals` random swaps at temperatures (in seconds) that fall from `hot` to `cold`."""
    state = layer.state
    items = np.uint64(len(state.rank_V))
    for i in range(proposals):
        a, b = np.int64(_random(state) % items), np.int64(_random(state) % items)
        if not allowed(state, a, b):
            continue
        change = gain(layer, a, b)
        # Down by equal factors: as many proposals for changes of each size.
        temperature = hot * (cold / hot) ** (i / proposals) if hot > 0 else 0.0
        chance = (_random(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)  # 53 bits, 0 to below 1
        if change < 0 or (temperature > 0 and chance < np.exp(-change / temperature)):
            apply(layer, a, b)


@njit(cache=True)
def descend(layer: Any, proposals: int, least: float) -> int:
    """Take every swap that gains more than `least` seconds, pair by pair, until none does; returns those judged."""
    items = len(layer.state.rank_V)
    # A whole round of pairs without a gain ends it, wherever in the order the last gain was.
    used, since = 0, 0
    pairs = items * (items - 1) // 2
    while since < pairs:
        for a in range(items):
            for b in range(a):
                used += 1
                since += 1
                if allowed(layer.state, a, b) and gain(layer, a, b) < -least:
                    apply(layer, a, b)
                    since = 0
                if since >= pairs or used >= proposals:
                    return used
    return used


@njit(cache=True)
def typical_change(layer: Any, samples: int) -> float:
    """Mean absolute change of the cost over random swaps: the scale of temperatures."""
    state = layer.state
    items = np.uint64(len(state.rank_V))
    total, n = 0.0, 0
    for _ in range(samples):
        a, b = np.int64(_random(state) % items), np.int64(_random(state) % items)
        if allowed(state, a, b):
            total += abs(gain(layer, a, b))
            n += 1
    return total / max(n, 1)


@njit(cache=True)
def _random(state):  # type: ignore[no-untyped-def]
    """SplitMix64 (Steele, Lea, Flood, 2014): 64 random bits."""
    # In an array of one, since the fields of a tuple cannot be assigned.
    state.random[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state.random[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
