"""The fewest copies that must leave their home at one layer, whatever the placement without replicas.

What holds experts is a rank, or a domain with those of all its ranks; a copy is counted where its
token is at home far from it. Far may be another rank, another domain, or whatever copies need the
links for that are asked about.

*A copy for each holder.* A holder g of the set S takes in c_g(S) copies: tokens with a choice in S
that are at home far from g. As in `fan_out`, for any prices π of experts the copies of all holders
together are at least

    Σ_e π_e + Σ_g min over S of size |S_g| of (c_g(S) − π(S)),

the minima now being each holder's own, or those of all that are far from the same homes. Prices are
those that prove the fan-out, times the part of tokens that are at home far from a holder. Sets that
are too large to be looked at one by one are bounded by a semidefinite program (`semidefinite`).

*A copy for each choice.* Of expert e's choices those stay that tokens made which are at home near
its holder. What stays in all is at most the best assignment of experts to slots, a linear
assignment that is solved exactly.

*Who hears from whom.* With sets of P experts, a holder takes in something for sure where the tokens
that are at home far from it leave fewer than P experts unchosen; and the tokens of a home need a
holder far from it where they choose more experts than stand near.

Axes: T token, K choice, E expert, H home, G holder, N start.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.placement.certificates.columns import cheap_sets
from moecast.placement.certificates.fan_out import LARGE, MOST_NODES, FanOutBound, fan_out_bound
from moecast.placement.certificates.pricing import NO_LIMIT, cheapest_set
from moecast.placement.certificates.semidefinite import semidefinite_copies
from moecast.placement.certificates.tokens import LayerTokens

Int = npt.NDArray[np.int64]

SLACK = 0.01  # of a set's copies below the cheapest known that pricing need not look for
STARTS = 24
FEW_PROPOSALS = 2  # for each pair of experts: only prices are wanted, and 8 give the same ones


class FewestCopies(NamedTuple):
    """What was proved of a layer's copies; how far the fan-out's proof is from the best placement met on its way."""

    copies: float
    gap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Homes:
    """The tokens of one layer and EP group, and where they are at home.

    Parameters
    ----------
    tokens
        As its certificates read them.
    home_T
        Of H homes.
    size_G
        Experts that each holder has; they add up to E.
    near_HG
        Whether a copy from that home to that holder counts for nothing.
    """

    tokens: LayerTokens
    home_T: npt.NDArray[np.int32]
    size_G: Int
    near_HG: npt.NDArray[np.bool_]

    @property
    def chosen_HE(self) -> Int:
        """Choices of each expert by the tokens of each home."""
        homes, experts = len(self.near_HG), self.tokens.experts
        valid_TK = self.tokens.expert_TK >= 0
        pair = self.home_T[:, None].astype(np.int64) * experts + self.tokens.expert_TK
        return np.bincount(pair[valid_TK], minlength=homes * experts).reshape(homes, experts)

    @property
    def all_hear(self) -> bool:
        """Whether every holder takes in a copy, whatever the placement."""
        from_far_GE = ~self.near_HG.T @ (self.chosen_HE > 0)
        return bool((self.tokens.experts - from_far_GE.sum(axis=1) < self.size_G).all())

    @property
    def all_send(self) -> bool:
        """Whether every home's tokens need a holder that is far, whatever the placement."""
        return bool(((self.chosen_HE > 0).sum(axis=1) > self.near_HG @ self.size_G).all())

    def remote_choices(self) -> int:
        """Choices that are served far from home, at the least."""
        from scipy.optimize import linear_sum_assignment  # .4 s, and few commands need it

        chosen_HE = self.chosen_HE
        of_slots = np.repeat(self.near_HG.T.astype(np.int64) @ chosen_HE, self.size_G, axis=0)
        slot, expert = linear_sum_assignment(of_slots, maximize=True)
        return int(chosen_HE.sum() - of_slots[slot, expert].sum())

    def counted_copies(self) -> int:
        """Copies to holders that are far, at the least: a token has no more choices near than experts stand there."""
        room = int((self.near_HG @ self.size_G).max(initial=0))
        return int(np.maximum(-(-(self.tokens.choices_T - room) // int(self.size_G.max())), 0).sum())

    def fan_out(
        self,
        *,
        most_nodes: int = MOST_NODES,
        time_limit_s: float = float("inf"),
        seed: int = 0,
        proposals_per_pair: int = FEW_PROPOSALS,
    ) -> FanOutBound:
        """All copies, near or far, at the least."""
        return fan_out_bound(
            _as_choices(self.tokens),
            self.tokens.experts,
            self.size_G,
            most_nodes=most_nodes,
            seed=seed,
            time_limit_s=time_limit_s,
            proposals_per_pair=proposals_per_pair,
        )

    def remote_copies(
        self,
        *,
        known: FanOutBound | None = None,
        most_nodes: int = MOST_NODES,
        time_limit_s: float = float("inf"),
        seed: int = 0,
    ) -> FewestCopies:
        """Copies to holders that are far, at the least.

        Parameters
        ----------
        known
            The fan-out, where it is known already.
        most_nodes
            Sets that exact pricing looks at, for the prices and again for all holders.
        time_limit_s
            CPU seconds, likewise.
        """
        until_s = time.process_time() + time_limit_s
        counted = float(self.counted_copies())
        chosen = self.tokens.choices_T > 0
        if not chosen.any():
            return FewestCopies(0.0, 0.0)
        if self.is_large:
            return FewestCopies(max(counted, self._semidefinite(until_s)), float("nan"))
        if known is None:
            known = self.fan_out(most_nodes=most_nodes, seed=seed, time_limit_s=time_limit_s)
        # Each token has at most one copy to each holder that is near.
        least = known.copies - int(self.near_HG.sum(axis=1).max()) * float(chosen.sum())
        return FewestCopies(max(self._by_sets(known, most_nodes, until_s, seed), least, counted), known.gap)

    @property
    def is_large(self) -> bool:
        """Whether sets have too many experts to be looked at one by one."""
        return int(self.size_G.max()) > LARGE

    def _semidefinite(self, until_s: float) -> float:
        """By the semidefinite program: nothing where sets differ in size, homes are not theirs, or time is over."""
        sets = len(self.size_G)
        own = np.array_equal(self.near_HG, np.eye(sets, dtype=bool))
        if not own or self.size_G.min() < self.size_G.max() or time.process_time() >= until_s:
            return 0.0
        return semidefinite_copies(
            self.tokens.expert_TK.astype(np.int64), self.tokens.experts, sets, home_T=self.home_T.astype(np.int64)
        )

    def _by_sets(self, known: FanOutBound, most_nodes: int, until_s: float, seed: int) -> float:
        """By prices, with the cheapest set of each holder."""
        price_E = (1 - float(self.near_HG.mean())) * known.price_E
        copies, nodes, rng = float(price_E.sum()) - 1e-9 * self.tokens.n, 0, np.random.default_rng(seed)
        kinds, count_of = np.unique(np.column_stack([self.near_HG.T, self.size_G]), axis=0, return_counts=True)
        for (*near_H, size), count in zip(kinds.tolist(), count_of.tolist(), strict=True):
            tokens = self.tokens.only(~np.array(near_H, bool)[self.home_T])
            random = [rng.permutation(tokens.experts)[:size] for _ in range(STARTS)]
            of_plan = [np.flatnonzero(known.rank_E == g) for g in range(len(self.size_G)) if self.size_G[g] == size]
            copies_N, set_NP = cheap_sets(tokens, price_E, np.array([*of_plan, *random]), NO_LIMIT)
            value_N = copies_N - price_E[set_NP].sum(axis=1)
            cheapest = int(np.argmin(value_N))
            priced = cheapest_set(
                tokens,
                price_E,
                size,
                below=float(value_N[cheapest] - SLACK * copies_N[cheapest]),
                most_nodes=max(0, most_nodes - nodes),
                until_s=until_s,
            )
            nodes += priced.nodes
            copies += count * priced.least
        return copies


def choices_and_homes(
    parts: Sequence[tuple[npt.NDArray[np.uint16], npt.NDArray[np.int32]]], experts: int
) -> tuple[LayerTokens, npt.NDArray[np.int32]]:
    """Take the choices and homes of several steps together."""
    tokens = LayerTokens.of(np.concatenate([choices for choices, _ in parts]), experts)
    return tokens, np.concatenate([home for _, home in parts])


def _as_choices(tokens: LayerTokens) -> npt.NDArray[np.int64]:
    return np.where(tokens.expert_TK < 0, 65535, tokens.expert_TK).astype(np.int64)
