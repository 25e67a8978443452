"""One layer to be searched, and what its windows' slowest ranks pay: worked out afresh where something has moved.

The cost of a window is that of its slowest rank, plus a share of the mean (see
`moecast.placement.cost`). Windows belong to *scenarios*, of which there is one unless the search is
robust: the layer's cost is that of the worst scenario's slowest ranks, plus the shares of all.

Axes: V item, G rank, P slot of a rank, N domain, W window, C scenario, E expert, R place in an
order (the first three).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner
from moecast.placement import swaps
from moecast.placement.holders import Holders, in_turn, share_load
from moecast.placement.standing import State, rank_slowest, settle_scenarios

Float = npt.NDArray[np.float64]


class Prices(NamedTuple):
    """What a window's ranks pay.

    Parameters
    ----------
    load_VW
        Seconds that an item's choices cost the rank it stands on.
    copy_W, domain_copy_W
        Seconds that a counted copy to a rank costs it, and that one to a domain costs each of the
        domain's ranks.
    mean_W, domain_mean_W
        Seconds that such a copy costs everybody: the sender's side, spread over all ranks.
    """

    load_VW: Float
    copy_W: Float
    domain_copy_W: Float
    mean_W: Float
    domain_mean_W: Float

    @property
    def of_copies(self) -> tuple[tuple[Float, Float], tuple[Float, Float]]:
        """What a copy to a rank costs it and everybody, and one to a domain."""
        return (self.copy_W, self.mean_W), (self.domain_copy_W, self.domain_mean_W)


class Layer(NamedTuple):
    """One layer to be searched: its tokens, what they cost, and where its items stand.

    Parameters
    ----------
    tokens, served
        Those whose copies cost something, and which of them each item serves.
    prices
        What windows' ranks pay.
    ranks, domains
        Sets of the tokens, with ranks and with domains as buckets; where a copy to one costs
        nothing, no sets.
    state
        Where the items stand.
    holders
        The items of each expert.
    """

    tokens: swaps.Tokens
    served: swaps.Served
    prices: Prices
    ranks: swaps.Sets
    domains: swaps.Sets
    state: State
    holders: Holders

    @classmethod
    def of(cls, tokens: swaps.Tokens, prices: Prices, state: State, holders: Holders) -> Layer:
        """Let the items serve the tokens as they stand, and gather who has what."""
        windows, n_ranks = state.own_WG.shape
        serve(tokens, holders, state.rank_V)
        served = swaps.Served.of(tokens, len(state.rank_V), windows)
        counted = [bool(own.any() or mean.any()) for own, mean in prices.of_copies]
        ranks = swaps.Sets.of(served, state.rank_V, n_ranks, counted=counted[0])
        domains = swaps.Sets.of(served, state.domain_V, state.entry_WN.shape[1], counted=counted[1])
        layer = cls(tokens, served, prices, ranks, domains, state, holders)
        for expert in range(len(holders.replicas_E)):
            enter_loads(layer, expert)
        settle(layer)
        keep_best(state)
        return layer


@entry
def serve(tokens: Any, holders: Any, rank_V: Any) -> None:
    """Enter the item that serves each choice; nothing is counted yet."""
    for expert in range(len(tokens.first_E1) - 1):
        turn_QR, number_Q = in_turn(holders, rank_V, expert)
        for x in range(tokens.first_E1[expert], tokens.first_E1[expert + 1]):
            t = tokens.token_X[x]
            place = tokens.place_T[t]
            r = turn_QR[place, tokens.turn_X[x] % number_Q[place]]
            tokens.item_TK[t, tokens.k_X[x]] = holders.item_ER[expert, r]


@entry
def enter_loads(layer: Any, expert: int) -> None:
    """Enter what each replica of an expert costs its rank."""
    replicas = layer.holders.replicas_E[expert]
    load_RW = np.empty((replicas, layer.prices.load_VW.shape[1]))
    share_load(layer.holders, layer.state.rank_V, expert, load_RW)
    for r in range(replicas):
        layer.prices.load_VW[layer.holders.item_ER[expert, r]] = load_RW[r]


@entry
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


@inner
def settle_rank(layer: Any, w: int, g: int) -> None:
    """Work out what a rank pays for its own items and copies."""
    state, prices = layer.state, layer.prices
    # Afresh, not by differences: roundings would add up over millions of swaps.
    seconds = prices.copy_W[w] * layer.ranks.copies_WB[w, g]
    for p in range(state.slots_G[g]):
        seconds += prices.load_VW[state.item_GP[g, p], w]
    state.own_WG[w, g] = seconds


@inner
def settle_domain(layer: Any, w: int, n: int) -> None:
    """Work out what each rank of a domain pays for the copies that enter it, and who pays most there."""
    state = layer.state
    state.entry_WN[w, n] = layer.prices.domain_copy_W[w] * layer.domains.copies_WB[w, n]
    for r in range(3):
        state.top_WNR[w, n, r] = -1
    for x in range(state.first_N1[n], state.first_N1[n + 1]):
        g = state.member_X[x]  # who is pushed off a place goes on to ask for the next one
        for r in range(3):
            other = state.top_WNR[w, n, r]
            if other < 0:
                state.top_WNR[w, n, r] = g
                break
            if state.own_WG[w, g] > state.own_WG[w, other]:
                state.top_WNR[w, n, r], g = g, other


@inner
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


@entry
def keep_best(state: Any) -> None:
    """Keep the state if it is the best one so far: annealing ends in some state, seldom in the best."""
    if state.total[0] < state.total[1]:
        state.total[1] = state.total[0]
        state.best_rank_V[:] = state.rank_V
        state.best_expert_V[:] = state.expert_V
