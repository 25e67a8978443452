"""The fewest copies that must leave their rank at one layer, whatever the placement without replicas.

*A copy for each rank.* A rank g that holds the set S takes in c_g(S) copies: tokens with a choice
in S that are not at home on g. As in `fan_out`, for any prices π of experts the copies of all ranks
together are at least

    Σ_e π_e + Σ_g min over S of size |S_g| of (c_g(S) − π(S)),

the minima now being each rank's own. Prices are those that prove the fan-out, times the part of
tokens that are not at home on a rank.

*A copy for each choice.* Of expert e's choices those that its own rank's tokens made stay. What
stays in all is at most the best assignment of experts to slots, a linear assignment that is solved
exactly.

*Who hears from whom.* With sets of P experts, a rank takes in something for sure where the tokens
that are at home elsewhere leave fewer than P experts unchosen; and its own tokens need another rank
where they choose more than P.

Axes: T token, K choice, E expert, G rank, N start.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.placement.certificates.columns import cheap_sets
from moecast.placement.certificates.fan_out import MOST_NODES, fan_out_bound
from moecast.placement.certificates.pricing import NO_LIMIT, cheapest_set
from moecast.placement.certificates.tokens import LayerTokens

Int = npt.NDArray[np.int64]

SLACK = 0.01  # of a set's copies below the cheapest known that pricing need not look for
STARTS = 24
FEW_PROPOSALS = 8  # for each pair of experts: only prices are wanted


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
        Member of the EP group.
    size_G
        Experts that each member holds; they add up to E.
    """

    tokens: LayerTokens
    home_T: npt.NDArray[np.int32]
    size_G: Int

    @property
    def chosen_GE(self) -> Int:
        """Choices of each expert by the tokens at home on each rank."""
        members, experts = len(self.size_G), self.tokens.experts
        valid_TK = self.tokens.expert_TK >= 0
        pair = self.home_T[:, None].astype(np.int64) * experts + self.tokens.expert_TK
        return np.bincount(pair[valid_TK], minlength=members * experts).reshape(members, experts)

    @property
    def all_hear(self) -> bool:
        """Whether every rank takes in a copy, and sends one, whatever the placement."""
        chosen_GE = self.chosen_GE
        from_others = (chosen_GE.sum(axis=0) - chosen_GE > 0).sum(axis=1)
        return bool((self.tokens.experts - from_others < self.size_G).all())

    @property
    def all_send(self) -> bool:
        """Whether every rank's own tokens need another rank, whatever the placement."""
        return bool(((self.chosen_GE > 0).sum(axis=1) > self.size_G).all())

    def remote_choices(self) -> int:
        """Choices that are served away from home, at the least."""
        from scipy.optimize import linear_sum_assignment  # .4 s, and few commands need it

        chosen_GE = self.chosen_GE
        of_slots = np.repeat(chosen_GE, self.size_G, axis=0)
        slot, expert = linear_sum_assignment(of_slots, maximize=True)
        return int(chosen_GE.sum() - of_slots[slot, expert].sum())

    def fan_out(
        self, *, most_nodes: int = MOST_NODES, time_limit_s: float = float("inf"), seed: int = 0
    ) -> FewestCopies:
        """Copies with those to the own rank, at the least."""
        known = fan_out_bound(
            _as_choices(self.tokens),
            self.tokens.experts,
            self.size_G,
            most_nodes=most_nodes,
            seed=seed,
            time_limit_s=time_limit_s,
        )
        return FewestCopies(known.copies, known.gap)

    def remote_copies(
        self, *, most_nodes: int = MOST_NODES, time_limit_s: float = float("inf"), seed: int = 0
    ) -> FewestCopies:
        """Copies that leave their rank, at the least.

        Parameters
        ----------
        most_nodes
            Sets that exact pricing looks at, for the prices and again for all ranks.
        time_limit_s
            CPU seconds, likewise.
        """
        until_s = time.process_time() + time_limit_s
        least = int(np.maximum(-(-self.tokens.choices_T // int(self.size_G.max())) - 1, 0).sum())
        known = fan_out_bound(
            _as_choices(self.tokens),
            self.tokens.experts,
            self.size_G,
            most_nodes=most_nodes,
            seed=seed,
            time_limit_s=time_limit_s,
            proposals_per_pair=FEW_PROPOSALS,
        )
        chosen = self.tokens.choices_T > 0
        if not chosen.any():
            return FewestCopies(0.0, known.gap)
        away = 1 - 1 / len(self.size_G)
        price_E, copies, nodes = away * known.price_E, 0.0, 0
        rng = np.random.default_rng(seed)
        for rank, size in enumerate(self.size_G.tolist()):
            tokens = self.tokens.only(self.home_T != rank)
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
            copies += priced.least
        total = float(price_E.sum()) + copies - 1e-9 * self.tokens.n
        # Each token has at most one copy on its own rank.
        return FewestCopies(max(total, known.copies - float(chosen.sum()), float(least)), known.gap)


def pooled(parts: Sequence[tuple[npt.NDArray[np.uint16], npt.NDArray[np.int32]]], experts: int, size_G: Int) -> Homes:
    """Take the choices and homes of several steps together."""
    tokens = LayerTokens.of(np.concatenate([choices for choices, _ in parts]), experts)
    return Homes(tokens=tokens, home_T=np.concatenate([home for _, home in parts]), size_G=size_G)


def _as_choices(tokens: LayerTokens) -> npt.NDArray[np.int64]:
    return np.where(tokens.expert_TK < 0, 65535, tokens.expert_TK).astype(np.int64)
