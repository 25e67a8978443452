"""The least fan-out that any placement of a layer without replicas can have, by set partitioning.

A rank is a set of experts; a set S costs c(S), the tokens with a choice in it. A placement is a
partition of the experts into sets of the ranks' sizes, and its copies (fan-out times tokens) are
the sum of its sets' costs.

Proof of the bound. For any prices π of experts, a partition S₁ … S_G costs

    Σ c(S_g) = Σ_e π_e + Σ_g (c(S_g) − π(S_g)) ≥ Σ_e π_e + Σ_g min over S of size |S_g| of (c(S) −
    π(S)),

as each expert stands in exactly one set. The minima are found, or bounded from below, by
`cheapest_set`; so the bound holds for whatever prices, and whenever the search for them stops.
Where loads are limited the minima are over sets within the limit, as all sets of such a partition
are.

Good prices are the duals of the linear program over the sets known so far (column generation;
Dantzig and Wolfe, 1960), mixed with the best prices yet (Wentges, 1997), since those of few sets
swing wildly. Sets come from local search; only then, once the heuristic value of the prices has
come close to the program's, are they priced exactly.

Sets of many experts, such as those of domains, cannot be looked at one by one: there, and wherever
the proof is weak, a semidefinite program bounds the copies, too (`semidefinite`).

Axes: T token, K choice, E expert, G rank, P place in a set, N set.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.errors import MoecastError
from moecast.placement.certificates.columns import cheap_sets, copies_of, partition
from moecast.placement.certificates.pricing import NO_LIMIT, cheapest_set
from moecast.placement.certificates.semidefinite import semidefinite_copies
from moecast.placement.certificates.tokens import LayerTokens

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

PARTITIONS, PROPOSALS_PER_PAIR = 4, 50
BEST_SETS, RANDOM_SETS = 30, 10  # from which local search starts, each round
MIXED = 0.7  # part of the best prices yet; less once nothing new is found with it
CLOSE = 0.001  # of the program's value: there the prices are priced exactly
MOST_ROUNDS = 600
MOST_PROOFS = 8  # exact pricings, each of which may find sets that local search does not
MOST_NODES = 4_000_000
ROUNDING = 1e-9
WEAK = 0.05  # a gap from which on other bounds are tried, too
LARGE = 12  # experts of a set from which on looking at sets proves next to nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class FanOutBound:
    """What was proved of a layer.

    Parameters
    ----------
    copies
        No placement takes fewer, over all tokens.
    tokens
        How many there are.
    plan_copies, rank_E
        Of the best placement seen on the way, and that placement; infinite where none kept within
        the load.
    price_E
        The prices that prove the bound.
    nodes
        Sets that pricing looked at.
    proved
        Whether pricing came to its end; else the bound holds, too, but more time would raise it.
    """

    copies: float
    tokens: int
    plan_copies: float
    rank_E: Int
    price_E: Float
    nodes: int
    proved: bool

    @property
    def fan_out(self) -> float:
        """No placement has less."""
        return self.copies / max(self.tokens, 1)

    def or_better(self, other: FanOutBound) -> FanOutBound:
        """Take the higher of two bounds of the same layer, and the nodes of both."""
        better = other if other.copies > self.copies else self
        return replace(better, nodes=self.nodes + other.nodes)

    @property
    def gap(self) -> float:
        """How far the best placement seen is from it, as a part of that."""
        return 1 - self.copies / self.plan_copies if np.isfinite(self.plan_copies) and self.plan_copies else np.nan


def fan_out_bound(
    experts_TK: npt.ArrayLike,
    experts: int,
    size_G: Iterable[int],
    *,
    most_load: float | None = None,
    seed: int = 0,
    most_nodes: int = MOST_NODES,
    time_limit_s: float = float("inf"),
    proposals_per_pair: int = PROPOSALS_PER_PAIR,
) -> FanOutBound:
    """Bound the copies of a layer's tokens from below, own rank included.

    Parameters
    ----------
    experts_TK
        The experts that each token chooses, 65535 for none.
    experts
        E.
    size_G
        Experts that each rank holds; they add up to E, so that there are no replicas.
    most_load
        Choices that a rank may serve at the most, as a multiple of the mean; None: any number.
    most_nodes
        Sets, whole or in part, that exact pricing looks at: with the same number, the same bound.
    time_limit_s
        CPU seconds after which it stops with the bound that it has.
    proposals_per_pair
        Of experts, that each of the first partitions is annealed for: they make the plan, and
        hardly the bound.

    Raises
    ------
    MoecastError
        Sizes that do not add up to the experts, or a load limit below the mean.
    TypeError, ValueError
        Choices that are none of these experts.
    """
    tokens = LayerTokens.of(experts_TK, experts)
    sizes_G = whole_numbers("size_G", np.array(list(size_G)), least=1, most=experts)
    if sizes_G.sum() != experts:
        rule = f"must add up to the {experts} experts: the bound is for placements without replicas"
        raise MoecastError(rule, field="size_G", value=sizes_G.tolist())
    if most_load is not None and not 1 <= most_load < float("inf"):
        raise MoecastError("must be at least 1, the mean", field="most_load", value=most_load)
    limit = NO_LIMIT if most_load is None else most_load * tokens.load_E.sum() / len(sizes_G)
    until_s = time.process_time() + time_limit_s
    program = _Program.of(tokens, sizes_G, limit, seed, proposals_per_pair)
    if sizes_G.max() > LARGE:
        return _relaxed(program.known(0.0), tokens, sizes_G, until_s)
    best = _proved(program, most_nodes, until_s)
    if best.gap < WEAK and best.copies > 0:
        return best
    best = _relaxed(best, tokens, sizes_G, until_s)
    if limit == NO_LIMIT:
        return best
    # Few sets keep within a tight limit, and prices made of those that are known prove little. What
    # holds for any loads holds for these.
    free = _Program.of(tokens, sizes_G, NO_LIMIT, seed, proposals_per_pair)
    of_any = _proved(free, max(1, most_nodes - best.nodes), until_s)
    return replace(best.or_better(of_any), plan_copies=best.plan_copies, rank_E=best.rank_E)


def _relaxed(found: FanOutBound, tokens: LayerTokens, size_G: Int, until_s: float) -> FanOutBound:
    """Raise a bound by the semidefinite program, where sets are of one size and there is time."""
    if size_G.min() < size_G.max() or time.process_time() >= until_s:
        return found
    copies = semidefinite_copies(tokens.expert_TK.astype(np.int64), tokens.experts, len(size_G))
    return replace(found, copies=max(found.copies, copies))


def _proved(program: _Program, most_nodes: int, until_s: float) -> FanOutBound:
    """The best bound of several searches for prices, each with the sets that proving the last one found."""
    best = None
    for _ in range(MOST_PROOFS):
        program.search(until_s)
        proof = program.prove(most_nodes, until_s)
        most_nodes -= proof.nodes
        best = proof if best is None else best.or_better(proof)
        if not program.learnt or most_nodes <= 0 or time.process_time() >= until_s:
            break
    assert best is not None
    return best


@dataclass(slots=True, kw_only=True, eq=False)
class _Program:
    """The linear program over sets under way."""

    tokens: LayerTokens
    count_Z: Int  # ranks of each size
    size_Z: Int
    most_load: float
    rng: np.random.Generator
    copies_of: dict[tuple[int, ...], int]
    plan_copies: float
    rank_E: Int
    best_E: Float
    value: float = -np.inf  # of the best prices, if local search had found the cheapest sets
    least_Z: Float = field(default_factory=lambda: np.empty(0))
    learnt: bool = False  # whether exact pricing has found sets that local search had not

    @classmethod
    def of(cls, tokens: LayerTokens, size_G: Int, most_load: float, seed: int, proposals: int) -> _Program:
        """Begin with the sets of a few partitions."""
        proposals *= tokens.experts**2
        found = [partition(tokens, size_G, most_load, proposals, seed + number) for number in range(PARTITIONS)]
        best, rank_E = min(found, key=lambda pair: float(pair[0]))
        size_Z, count_Z = np.unique(size_G, return_counts=True)
        program = cls(
            tokens=tokens,
            count_Z=count_Z,
            size_Z=size_Z,
            most_load=most_load,
            rng=np.random.default_rng(seed),
            copies_of={},
            plan_copies=float(best),
            rank_E=rank_E,
            best_E=_shared_copies(tokens, rank_E),
        )
        for _, ranks_E in found:
            for rank in range(len(size_G)):
                program.put(np.flatnonzero(ranks_E == rank))
        return program

    def put(self, set_P: Int) -> bool:
        """Remember a set within the load; whether it is new."""
        key = tuple(set_P.tolist())
        if key in self.copies_of or self.tokens.load_E[set_P].sum() > self.most_load:
            return False
        self.copies_of[key] = int(copies_of(self.tokens, set_P))
        return True

    def search(self, until_s: float) -> None:
        """Look for prices whose heuristic value comes close to the program's."""
        mixed = MIXED
        for _ in range(MOST_ROUNDS):
            self._value_anew()
            optimum, dual_E = self._solve()
            prices_E = mixed * self.best_E + (1 - mixed) * dual_E
            new = self._price(prices_E)
            if new:
                mixed = MIXED
            elif mixed > 0:
                mixed = max(0.0, mixed - 0.2)
            else:
                break
            if optimum - self.value < CLOSE * abs(optimum) or time.process_time() >= until_s:
                break

    def _value_anew(self) -> None:
        """Lower the value of the best prices where sets that were met since are cheaper under them."""
        for z, size in enumerate(self.size_Z if len(self.least_Z) else ()):
            least = self._known(self.best_E, int(size))[1].min(initial=np.inf)
            self.value -= self.count_Z[z] * max(0.0, self.least_Z[z] - least)
            self.least_Z[z] = min(self.least_Z[z], least)

    def _known(self, prices_E: Float, size: int) -> tuple[Int, Float]:
        """The known sets of a size, and what they cost less their prices."""
        known = np.array([key for key in self.copies_of if len(key) == size], np.int64).reshape(-1, size)
        copies_N = np.array([self.copies_of[key] for key in map(tuple, known.tolist())])
        return known, copies_N - prices_E[known].sum(axis=1)

    def _price(self, prices_E: Float) -> int:
        """Find cheap sets of each size under prices; how many are new and of use to the program."""
        new, value, least_Z = 0, float(prices_E.sum()), np.zeros(len(self.size_Z))
        for z, size in enumerate(self.size_Z):
            starts_NP, known = self._starts(prices_E, int(size))
            copies_N, set_NP = cheap_sets(self.tokens, prices_E, starts_NP, self.most_load)
            kept_N = self.tokens.load_E[set_NP].sum(axis=1) <= self.most_load
            copies_N, set_NP = copies_N[kept_N], set_NP[kept_N]
            least_Z[z] = min(known, (copies_N - prices_E[set_NP].sum(axis=1)).min(initial=np.inf))
            value += self.count_Z[z] * least_Z[z]
            new += sum(self.put(set_P) for set_P in set_NP)
        if np.isfinite(value) and value > self.value:
            self.value, self.best_E, self.least_Z = value, prices_E, least_Z
        return new

    def _starts(self, prices_E: Float, size: int) -> tuple[Int, float]:
        """The cheapest known sets of a size, and some at random; what the cheapest costs, less its prices."""
        known, cost_N = self._known(prices_E, size)
        best = known[np.argsort(cost_N, kind="stable")[:BEST_SETS]]
        random = [self.rng.permutation(self.tokens.experts)[:size] for _ in range(RANDOM_SETS)]
        return np.ascontiguousarray(np.concatenate([best, np.array(random)])), float(cost_N.min(initial=np.inf))

    def _solve(self) -> tuple[float, Float]:
        """Solve the program over the known sets; its value and the experts' duals.

        Where no partition of them exists, experts may be left out or taken twice for more than all
        copies together.
        """
        from scipy.optimize import linprog
        from scipy.sparse import csc_array

        sets, experts = list(self.copies_of), self.tokens.experts
        rows = np.fromiter((expert for key in sets for expert in key), np.int64)
        columns = np.repeat(np.arange(len(sets)), [len(key) for key in sets])
        dear = float(self.tokens.n * self.tokens.expert_TK.shape[1] + 1)
        slack = np.arange(experts)
        entries = np.concatenate([np.ones(len(rows)), np.ones(experts), -np.ones(experts)])
        places = (
            np.concatenate([rows, slack, slack]),
            np.concatenate([columns, len(sets) + slack, len(sets) + experts + slack]),
        )
        covered: Any = csc_array((entries, places), shape=(experts, len(sets) + 2 * experts))
        cost = np.concatenate([[float(self.copies_of[key]) for key in sets], np.full(2 * experts, dear)])
        wanted = [np.ones(experts)]
        if len(self.size_Z) > 1:
            from scipy.sparse import vstack

            of_size = np.zeros((len(self.size_Z), len(cost)))
            for z, size in enumerate(self.size_Z):
                of_size[z, : len(sets)] = [len(key) == size for key in sets]
            covered = vstack([covered, csc_array(of_size)])
            wanted.append(self.count_Z.astype(np.float64))
        solved = linprog(cost, A_eq=covered, b_eq=np.concatenate(wanted), method="highs-ds")
        if solved.status != 0:  # sizes that no known sets add up to: prices stay those that are the best yet
            return np.inf, self.best_E
        return float(solved.fun or 0.0), np.asarray(solved.eqlin.marginals[:experts], np.float64)

    def prove(self, most_nodes: int, until_s: float) -> FanOutBound:
        """Price the best prices exactly; sets that turn out to be cheaper are remembered for another search."""
        copies, nodes, ended, self.learnt = float(self.best_E.sum()), 0, True, False
        room = ROUNDING * self.tokens.n
        for z, size in enumerate(self.size_Z):
            expected = float(self.least_Z[z]) if len(self.least_Z) else 0.0
            priced = cheapest_set(
                self.tokens,
                self.best_E,
                int(size),
                below=expected - room,
                most_load=self.most_load,
                most_nodes=most_nodes - nodes,
                until_s=until_s,
            )
            nodes += priced.nodes
            ended = ended and priced.least >= priced.best - room
            copies += float(self.count_Z[z]) * (priced.least - room)
            new = [self.put(set_P) for set_P in priced.experts_NP]
            self.learnt = self.learnt or any(new)
        if self.learnt:  # the value that these prices seemed to have was too high
            self.value = copies
        return self.known(copies, nodes, proved=ended)

    def known(self, copies: float, nodes: int = 0, *, proved: bool = False) -> FanOutBound:
        """What is known with a bound on copies; each token that chooses anything has a copy somewhere."""
        trivial = int((self.tokens.choices_T > 0).sum())
        return FanOutBound(
            copies=max(copies, float(trivial)),
            tokens=self.tokens.n,
            plan_copies=self.plan_copies,
            rank_E=self.rank_E,
            price_E=self.best_E.copy(),
            nodes=nodes,
            proved=proved,
        )


def _shared_copies(tokens: LayerTokens, rank_E: Int) -> Float:
    """Each copy of a placement shared out among the experts that it is for: a first guess at prices."""
    rank_TK = np.where(tokens.expert_TK >= 0, rank_E[tokens.expert_TK], -1)
    share_E = np.zeros(tokens.experts)
    for k in range(rank_TK.shape[1]):
        of_T = rank_TK[:, k] >= 0
        beside_T = (rank_TK[of_T] == rank_TK[of_T, k : k + 1]).sum(axis=1)
        np.add.at(share_E, tokens.expert_TK[of_T, k], 1.0 / beside_T)
    return share_E
