"""Simulated annealing of one layer: items change places, or become replicas of other experts.

Every proposal is judged exactly, by what `moecast.placement.priced_layer` says that the layer costs
after it: a swap from sets of tokens, which only accepted ones touch.

Axes: V item, G rank, P slot of a rank, N domain, W window, E expert.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner
from moecast.placement import swaps
from moecast.placement.priced_layer import keep_best, settle_domain, settle_rank, settle_total
from moecast.placement.replica_moves import conversion_gain, convert, convertible
from moecast.placement.standing import follow_swap, rank_slowest, slowest_but

Float = npt.NDArray[np.float64]

LEAST_GAIN = 1e-9  # of a layer's cost, or of the mean load: smaller gains are rounding
# with more, too few random swaps concern a slowest rank; with so few, aiming at them costs fan-out
FEW_RANKS = 16
AIMED = np.uint64(4)  # one proposal in so many takes its first item from a slowest rank
# one proposal in so many gives a slot to another expert, where there are slots to spare
CONVERTED = np.uint64(64)
TRIES = 8  # at an item that may be given away
SAME_TEMPERATURE = 64  # proposals; powers cost as much as a proposal of few windows


@inner
def allowed(layer: Any, a: int, b: int) -> bool:
    """Whether two items may change places: different ranks, no expert twice on a rank, pinned items stay at home."""
    state = layer.state
    rank_a, rank_b = state.rank_V[a], state.rank_V[b]
    if rank_a == rank_b or state.expert_V[a] == state.expert_V[b]:  # two holes, too, would change nothing
        return False
    expert_a, expert_b = state.expert_V[a], state.expert_V[b]
    if state.pinned[0] and layer.holders.place_G[rank_a] != layer.holders.place_G[rank_b]:
        if expert_a >= 0 and layer.holders.replicas_E[expert_a] > 1:
            return False
        if expert_b >= 0 and layer.holders.replicas_E[expert_b] > 1:
            return False
    if expert_a >= 0 and state.holds_EG[expert_a, rank_b]:
        return False
    return not (expert_b >= 0 and state.holds_EG[expert_b, rank_a])


@inner
def gain(layer: Any, a: int, b: int) -> float:
    """Change of the cost when items `a` and `b` change places."""
    prices, ranks, domains, state = layer.prices, layer.ranks, layer.domains, layer.state
    rank_a, rank_b = state.rank_V[a], state.rank_V[b]
    domain_a, domain_b = state.domain_V[a], state.domain_V[b]
    n_windows, n_scenarios, served_VI = len(state.slowest_W), len(state.scenario_s), layer.served.served_VI
    for c in range(n_scenarios):
        state.change_C[c] = 0.0
    shared = 0.0
    for w in range(n_windows):
        # Without touching the state: nearly all proposals are turned down.
        words = (ranks.first_W1[w], ranks.first_W1[w + 1])
        copies_a = swaps.added_copies(served_VI, ranks.any_BI, ranks.one_BI, a, b, rank_a, words)
        copies_b = swaps.added_copies(served_VI, ranks.any_BI, ranks.one_BI, b, a, rank_b, words)
        load = prices.load_VW[b, w] - prices.load_VW[a, w]
        seconds_a = state.own_WG[w, rank_a] + prices.copy_W[w] * copies_a + load
        seconds_b = state.own_WG[w, rank_b] + prices.copy_W[w] * copies_b - load
        shared += prices.mean_W[w] * (copies_a + copies_b)
        entering_s = (0.0, 0.0)
        if domain_a != domain_b:  # within a domain the copies to domains stay as they are
            words = (domains.first_W1[w], domains.first_W1[w + 1])
            entering_a = swaps.added_copies(served_VI, domains.any_BI, domains.one_BI, a, b, domain_a, words)
            entering_b = swaps.added_copies(served_VI, domains.any_BI, domains.one_BI, b, a, domain_b, words)
            shared += prices.domain_mean_W[w] * (entering_a + entering_b)
            price = prices.domain_copy_W[w]
            entering_s = (price * entering_a, price * entering_b)
        slowest = slowest_but(
            state.own_WG[w],
            state.entry_WN[w],
            state.top_WNR[w],
            state.order_WR[w],
            (rank_a, rank_b, domain_a, domain_b),
            (seconds_a, seconds_b),
            entering_s,
        )
        state.change_C[state.scenario_W[w]] += slowest - state.slowest_W[w]
    worst = most = state.scenario_s[0] + state.change_C[0]
    before = state.scenario_s[0]
    for c in range(1, n_scenarios):
        most = state.scenario_s[c] + state.change_C[c]
        worst, before = max(worst, most), max(before, state.scenario_s[c])
    return shared + worst - before


@inner
def apply(layer: Any, a: int, b: int) -> None:
    """Let items `a` and `b` change places."""
    state = layer.state
    rank_a, rank_b = state.rank_V[a], state.rank_V[b]
    domain_a, domain_b = state.domain_V[a], state.domain_V[b]
    follow_swap(state, a, b)
    swaps.swap(layer.served.served_VI, layer.ranks, state.rank_V, a, b)
    if domain_a != domain_b:
        swaps.swap(layer.served.served_VI, layer.domains, state.domain_V, a, b)
    for w in range(len(state.slowest_W)):
        settle_rank(layer, w, rank_a)
        settle_rank(layer, w, rank_b)
        settle_domain(layer, w, domain_a)
        if domain_a != domain_b:
            settle_domain(layer, w, domain_b)
        rank_slowest(state, w)
    settle_total(layer)


@entry
def anneal(layer: Any, proposals: int, hot: float, cold: float) -> None:
    """Judge `proposals` random swaps at temperatures (in seconds) that fall from `hot` to `cold`."""
    state = layer.state
    items = np.uint64(len(state.rank_V))
    temperature = hot
    for i in range(proposals):
        if i % SAME_TEMPERATURE == 0 and hot > 0:
            # Down by equal factors: as many proposals for changes of each size.
            temperature = hot * (cold / hot) ** (i / proposals)
        if state.spare[0] > 0 and random_bits(state) % CONVERTED == 0:
            propose_conversion(layer, temperature)
            continue
        a, b = first_item(state), np.int64(random_bits(state) % items)
        if allowed(layer, a, b) and accepted(state, gain(layer, a, b), temperature):
            apply(layer, a, b)
    keep_best(state)


@inner
def propose_conversion(layer: Any, temperature: float) -> None:
    """Give the slot of some replica that is not the last of its expert, or of a hole, to some other expert."""
    state = layer.state
    items, experts = np.uint64(len(state.rank_V)), np.uint64(len(state.holds_EG))
    v = np.int64(0)
    for _ in range(TRIES):
        v = np.int64(random_bits(state) % items)
        if state.expert_V[v] < 0 or layer.holders.replicas_E[state.expert_V[v]] > 1:
            break
    bits = random_bits(state)
    expert = np.int64(random_bits(state) % (experts + np.uint64(1))) - 1  # or to nobody
    if bits % np.uint64(2) == 0:  # what burdens a slowest rank is what another replica would help
        expert = np.int64(state.expert_V[item_of_slowest(state)])
    if convertible(layer, v, expert) and accepted(state, conversion_gain(layer, v, expert), temperature):
        convert(layer, v, expert)


@inner
def accepted(state: Any, change: float, temperature: float) -> bool:
    """Whether a change of the cost is taken: every gain, and a loss by chance while it is hot."""
    return change < 0 or (temperature > 0 and chance(state) < np.exp(-change / temperature))


@inner
def first_item(state: Any) -> np.int64:
    """Any item, or one of the slowest rank of some window: only its swaps can make that window faster."""
    bits = random_bits(state)
    if len(state.slots_G) <= FEW_RANKS or bits % AIMED:
        return np.int64(random_bits(state) % np.uint64(len(state.rank_V)))
    return item_of_slowest(state)


@inner
def item_of_slowest(state: Any) -> np.int64:
    """Any item of the slowest rank of any window."""
    bits = random_bits(state)
    w = np.int64(bits % np.uint64(len(state.slowest_W)))
    slowest = state.top_WNR[w, state.order_WR[w, 0], 0]
    slots = np.uint64(state.slots_G[slowest])
    if slots == 0:
        return np.int64(random_bits(state) % np.uint64(len(state.rank_V)))
    return np.int64(state.item_GP[slowest, np.int64(random_bits(state) % slots)])


@entry
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
                if allowed(layer, a, b) and gain(layer, a, b) < -least:
                    apply(layer, a, b)
                    since = 0
                if since >= pairs or used >= proposals:
                    break
            if since >= pairs or used >= proposals:
                break
    keep_best(layer.state)
    return used


@entry
def changes(layer: Any, samples: int) -> Float:
    """Changes of the cost by random swaps that are allowed, at most so many."""
    state = layer.state
    items = np.uint64(len(state.rank_V))
    found, n = np.zeros(samples), 0
    for _ in range(samples):
        a, b = np.int64(random_bits(state) % items), np.int64(random_bits(state) % items)
        if allowed(layer, a, b):
            found[n] = gain(layer, a, b)
            n += 1
    return found[:n]


@inner
def chance(state: Any) -> float:
    """A number from 0 to below 1."""
    return (random_bits(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)  # 53 bits


@inner
def random_bits(state):  # type: ignore[no-untyped-def]
    """SplitMix64 (Steele, Lea, Flood, 2014): 64 random bits."""
    # In an array of one, since the fields of a tuple cannot be assigned.
    state.random[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state.random[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
