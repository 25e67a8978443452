"""Simulated annealing of one layer: swaps of items between ranks, judged by the seconds of the slowest rank.

The cost of a window is that of its slowest rank, plus a share of the mean (see `moecast.placement.cost`). Windows
belong to *scenarios*, of which there is one unless the search is robust: the layer's cost is that of the worst
scenario's slowest ranks, plus the shares of all. Every proposal is judged exactly, from counts; only accepted ones
touch the tokens.

Axes: V item, G rank, P slot of a rank, N domain, W window, C scenario, E expert, R place in an order (the first three).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.compiled import njit
from moecast.placement import swaps
from moecast.placement.standing import State, follow_swap, rank_slowest, settle_scenarios, slowest_but

Float = npt.NDArray[np.float64]

LEAST_GAIN = 1e-9  # of a layer's cost, or of the mean load: smaller gains are rounding
FEW_RANKS = 16  # with more, too few random swaps concern a slowest rank; with so few, aiming at them costs fan-out
AIMED = np.uint64(4)  # one proposal in so many takes its first item from a slowest rank
SAME_TEMPERATURE = 64  # proposals; powers cost as much as a proposal of few windows


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
        windows, n_ranks = state.own_WG.shape
        ranks = swaps.count(tokens, state.rank_V, n_ranks, windows)
        domains = swaps.count(domain_tokens, state.domain_V, state.entry_WN.shape[1], windows)
        layer = cls(tokens, domain_tokens, prices, ranks, domains, state)
        settle(layer)
        keep_best(state)
        return layer


@njit(cache=True, nogil=True)
def settle(layer: Any) -> None:
    """Work out what all ranks pay from the counts, afresh."""
    n_windows, n_ranks = layer.state.own_WG.shape
    for w in range(n_windows):
        for g in range(n_ranks):
            settle_rank(layer, w, g)
        for n in range(layer.state.entry_WN.shape[1]):
            settle_domain(layer, w, n)
        rank_slowest(layer.state, w)
    settle_total(layer)


@njit(cache=True, nogil=True)
def settle_rank(layer: Any, w: int, g: int) -> None:
    """Work out what a rank pays for its own items and copies."""
    state, prices = layer.state, layer.prices
    # Afresh, not by differences: roundings would add up over millions of swaps.
    seconds = prices.copy_W[w] * layer.ranks.copies_WB[w, g]
    for p in range(state.slots_G[g]):
        seconds += prices.load_VW[state.item_GP[g, p], w]
    state.own_WG[w, g] = seconds


@njit(cache=True, nogil=True)
def settle_domain(layer: Any, w: int, n: int) -> None:
    """Work out what each rank of a domain pays for the copies that enter it, and who pays most there."""
    state = layer.state
    state.entry_WN[w, n] = layer.prices.domain_copy_W[w] * layer.domains.copies_WB[w, n]
    for r in range(3):
        state.top_WNR[w, n, r] = -1
    for x in range(state.first_N1[n], state.first_N1[n + 1]):
        g = state.member_X[x]
        for r in range(3):
            other = state.top_WNR[w, n, r]
            if other < 0:
                state.top_WNR[w, n, r] = g
                break
            if state.own_WG[w, g] > state.own_WG[w, other]:
                state.top_WNR[w, n, r], g = g, other


@njit(cache=True, nogil=True)
def settle_total(layer: Any) -> None:
    """Add up the scenarios, and what all ranks share."""
    prices, ranks, domains = layer.prices, layer.ranks, layer.domains
    shared = 0.0
    for w in range(len(prices.mean_W)):
        for g in range(ranks.copies_WB.shape[1]):
            shared += prices.mean_W[w] * ranks.copies_WB[w, g]
        for n in range(domains.copies_WB.shape[1]):
            shared += prices.domain_mean_W[w] * domains.copies_WB[w, n]
    layer.state.total[0] = shared + settle_scenarios(layer.state)


@njit(cache=True, nogil=True)
def keep_best(state: Any) -> None:
    """Keep the state if it is the best one so far: annealing ends in some state, seldom in the best."""
    if state.total[0] < state.total[1]:
        state.total[1] = state.total[0]
        state.best_rank_V[:] = state.rank_V
        state.best_expert_V[:] = state.expert_V


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def gain(layer: Any, a: int, b: int) -> float:
    """Change of the cost when items `a` and `b` change places."""
    prices, ranks, domains, state = layer.prices, layer.ranks, layer.domains, layer.state
    rank_a, rank_b = state.rank_V[a], state.rank_V[b]
    domain_a, domain_b = state.domain_V[a], state.domain_V[b]
    n_windows, n_scenarios = len(state.slowest_W), len(state.scenario_s)
    for c in range(n_scenarios):
        state.change_C[c] = 0.0
    shared = 0.0
    for w in range(n_windows):
        # From counts, without touching the state: nearly all proposals are turned down.
        copies_a = swaps.added_copies(ranks, a, b, rank_a, w)
        copies_b = swaps.added_copies(ranks, b, a, rank_b, w)
        load = prices.load_VW[b, w] - prices.load_VW[a, w]
        seconds_a = state.own_WG[w, rank_a] + prices.copy_W[w] * copies_a + load
        seconds_b = state.own_WG[w, rank_b] + prices.copy_W[w] * copies_b - load
        shared += prices.mean_W[w] * (copies_a + copies_b)
        entering_s = (0.0, 0.0)
        if domain_a != domain_b:  # within a domain the copies to domains stay as they are
            entering_a = swaps.added_copies(domains, a, b, domain_a, w)
            entering_b = swaps.added_copies(domains, b, a, domain_b, w)
            shared += prices.domain_mean_W[w] * (entering_a + entering_b)
            price = prices.domain_copy_W[w]
            entering_s = (price * entering_a, price * entering_b)
        slowest = slowest_but(
            state.own_WG[w], state.entry_WN[w], state.top_WNR[w], state.order_WR[w],
            (rank_a, rank_b, domain_a, domain_b), (seconds_a, seconds_b), entering_s,
        )  # fmt: skip
        state.change_C[state.scenario_W[w]] += slowest - state.slowest_W[w]
    worst = most = state.scenario_s[0] + state.change_C[0]
    before = state.scenario_s[0]
    for c in range(1, n_scenarios):
        most = state.scenario_s[c] + state.change_C[c]
        worst, before = max(worst, most), max(before, state.scenario_s[c])
    return shared + worst - before


@njit(cache=True, nogil=True)
def apply(layer: Any, a: int, b: int) -> None:
    """Let items `a` and `b` change places."""
    state = layer.state
    rank_a, rank_b = state.rank_V[a], state.rank_V[b]
    domain_a, domain_b = state.domain_V[a], state.domain_V[b]
    follow_swap(state, a, b)
    swaps.swap(layer.tokens, layer.ranks, state.rank_V, a, b)
    if domain_a != domain_b:
        swaps.swap(layer.domain_tokens, layer.domains, state.domain_V, a, b)
    for w in range(len(state.slowest_W)):
        settle_rank(layer, w, rank_a)
        settle_rank(layer, w, rank_b)
        settle_domain(layer, w, domain_a)
        if domain_a != domain_b:
            settle_domain(layer, w, domain_b)
        rank_slowest(state, w)
    settle_total(layer)


@njit(cache=True, nogil=True)
def anneal(layer: Any, proposals: int, hot: float, cold: float) -> None:
    """Judge `proposals` random swaps at temperatures (in seconds) that fall from `hot` to `cold`."""
    state = layer.state
    items = np.uint64(len(state.rank_V))
    temperature = hot
    for i in range(proposals):
        if i % SAME_TEMPERATURE == 0 and hot > 0:
            # Down by equal factors: as many proposals for changes of each size.
            temperature = hot * (cold / hot) ** (i / proposals)
        a, b = first_item(state), np.int64(random_bits(state) % items)
        if not allowed(state, a, b):
            continue
        change = gain(layer, a, b)
        if change < 0 or (temperature > 0 and chance(state) < np.exp(-change / temperature)):
            apply(layer, a, b)
    keep_best(state)


@njit(cache=True, nogil=True)
def first_item(state: Any) -> np.int64:
    """Any item, or one of the slowest rank of some window: only its swaps can make that window faster."""
    bits = random_bits(state)
    if len(state.slots_G) <= FEW_RANKS or bits % AIMED:
        return np.int64(random_bits(state) % np.uint64(len(state.rank_V)))
    w = np.int64((bits >> np.uint64(8)) % np.uint64(len(state.slowest_W)))
    slowest = state.top_WNR[w, state.order_WR[w, 0], 0]
    slots = np.uint64(state.slots_G[slowest])
    if slots == 0:
        return np.int64(random_bits(state) % np.uint64(len(state.rank_V)))
    return np.int64(state.item_GP[slowest, np.int64(random_bits(state) % slots)])


@njit(cache=True, nogil=True)
def descend(layer: Any, proposals: int, least: float) -> int:
    """Take every swap that gains more than `least` seconds, pair by pair, until none does; returns those judged."""
    items = len(layer.state.rank_V)
    # A whole round of pairs without a gain ends it, wherever in the order the last gain was.
    used, since = 0, 0
    pairs = items * (items - 1) // 2
    while since < pairs and used < proposals:
        for a in range(items):
            for b in range(a):
                used += 1
                since += 1
                if allowed(layer.state, a, b) and gain(layer, a, b) < -least:
                    apply(layer, a, b)
                    since = 0
                if since >= pairs or used >= proposals:
                    break
            if since >= pairs or used >= proposals:
                break
    keep_best(layer.state)
    return used


@njit(cache=True, nogil=True)
def typical_change(layer: Any, samples: int) -> float:
    """Mean absolute change of the cost over random swaps: the scale of temperatures."""
    state = layer.state
    items = np.uint64(len(state.rank_V))
    total, n = 0.0, 0
    for _ in range(samples):
        a, b = np.int64(random_bits(state) % items), np.int64(random_bits(state) % items)
        if allowed(state, a, b):
            total += abs(gain(layer, a, b))
            n += 1
    return total / max(n, 1)


@njit(cache=True, nogil=True)
def chance(state: Any) -> float:
    """A number from 0 to below 1."""
    return (random_bits(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)  # 53 bits


@njit(cache=True, nogil=True)
def random_bits(state):  # type: ignore[no-untyped-def]
    """SplitMix64 (Steele, Lea, Flood, 2014): 64 random bits."""
    # In an array of one, since the fields of a tuple cannot be assigned.
    state.random[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state.random[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
