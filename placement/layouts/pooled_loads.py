"""What a step's loads come to when they are pooled over the ranks of an EP group: all that holds for any placement.

Axes: T token, L MoE layer, E expert, K choice, G rank that holds tokens, M microbatch, X set of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner
from moecast.sim.layout import Layout

if TYPE_CHECKING:
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.serving_question import ServingQuestion
    from moecast.sim.step import Step

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.integer]
Int32 = npt.NDArray[np.int32]

PRICES = (0.95, 1.0, 1.05)
"""Multipliers that are tried, in times of the one that is best where all experts are chosen alike."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PooledLoads:
    """Loads of one step, or the least of any of its microbatches, by MoE layer.

    Parameters
    ----------
    rows_L, hits_L, hottest_L
        Choices; experts with any; choices of the expert that has most.
    load_MLE
        Choices of each expert.
    of_rank_MLGE
        Choices of each expert by the tokens of each rank; None: where tokens are at home is left open.
    every_choice
        Whether every token makes all K choices, so that ranks' parts of the rows are those of the tokens.
    """

    rows_L: Float
    hits_L: Float
    hottest_L: Float
    every_choice: bool
    load_MLE: Int = field(repr=False)
    of_rank_MLGE: Int | None = field(repr=False)
    _near: dict[int, tuple[Float, ...]] = field(default_factory=dict, repr=False)
    _lost: dict[tuple[int, int], Float] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, parts: list[Int], tokens_M: list[int], choices: int, *, at_home: bool) -> PooledLoads:
        """Pool counts [L, G, E] of microbatches of so many tokens."""
        of_rank_MLGE = np.stack(parts)
        load_MLE = of_rank_MLGE.sum(axis=2)
        rows_ML = load_MLE.sum(axis=2)
        return cls(
            rows_L=rows_ML.min(axis=0).astype(np.float64),
            hits_L=(load_MLE > 0).sum(axis=2).min(axis=0).astype(np.float64),
            hottest_L=load_MLE.max(axis=2).min(axis=0).astype(np.float64),
            every_choice=bool((rows_ML == np.array(tokens_M)[:, None] * choices).all()),
            load_MLE=load_MLE,
            of_rank_MLGE=of_rank_MLGE if at_home else None,
        )

    def lost_hits_L(self, ranks: int, slots: int) -> Float:
        """Slots without rows on the ranks that serve choices, mean over choices, at the most.

        Of a rank with x such slots each choice counts x, and its experts are `slots` - x at the most: so each of them
        stands for x / (slots - x) of all slots without rows, of which there are as many as slots less experts with
        rows. The most of the sum of choices times x under this limit, by Lagrange: any multiplier gives a bound.
        """
        if (ranks, slots) not in self._lost:
            lost_ML = _most_lost_ML(self.load_MLE, ranks, slots)
            self._lost[ranks, slots] = np.asarray(lost_ML.max(axis=0))
        return self._lost[ranks, slots]

    def near_part_L(self, ranks: int, slots: int) -> Float:
        """The part of all choices that stay among successive `ranks` that hold `slots` together, at the most.

        Those of the experts that the ranks' own tokens choose most, whatever placement. And each expert stands
        somewhere: where its own tokens choose it most, and what slots are left hold the most chosen of the others.
        """
        if self.of_rank_MLGE is None:
            return np.ones(len(self.rows_L))
        if ranks not in self._near:
            total_ML1 = np.maximum(self.load_MLE.sum(axis=2), 1)[:, :, None]
            counted = _near_MLE1(self.of_rank_MLGE, ranks)
            self._near[ranks] = tuple(np.asarray((each_MLE1 / total_ML1).max(axis=0)) for each_MLE1 in counted)
        alone_LE1, spread_LE1 = self._near[ranks]
        experts, sets = alone_LE1.shape[1] - 1, -(-self.of_rank_MLGE.shape[2] // ranks)
        near_L = alone_LE1[:, min(slots, experts)]
        left = sets * slots - experts
        return np.minimum(near_L, spread_LE1[:, left]) if 0 <= left <= experts else near_L


@entry
def _most_lost_ML(load_MLE, ranks, slots):  # type: ignore[no-untyped-def]
    """As of `PooledLoads.lost_hits_L`, for each microbatch."""
    microbatches, layers, experts = load_MLE.shape
    lost_ML = np.zeros((microbatches, layers))
    for m in range(microbatches):
        for layer in range(layers):
            load_E = load_MLE[m, layer]
            total, hit = load_E.sum(), max((load_E > 0).sum(), 1)
            empty = ranks * slots - hit
            if empty <= 0:
                continue
            even = empty * slots / (hit + empty)  # x where all experts are chosen alike
            even_price = max(total / hit * (slots - even) ** 2 / slots, 1e-9)
            lost = np.inf
            for times in PRICES:
                price = times * even_price
                bound = price * empty
                for expert in range(experts):
                    if load_E[expert] > 0:  # who has none loses none: x is 0 there
                        x = min(max(slots - np.sqrt(price * slots / load_E[expert]), 0.0), slots - 1.0)
                        bound += load_E[expert] * x - price * x / (slots - x)
                lost = min(lost, bound)
            lost_ML[m, layer] = lost / max(total, 1)
    return lost_ML


@inner
def _add_largest(many_C, sum_E1):  # type: ignore[no-untyped-def]
    """Add, for every n, the sum of the n largest of numbers of which there are so many of each."""
    n, taken, most = 0, 0, len(sum_E1) - 1
    for count in range(len(many_C) - 1, 0, -1):
        for _ in range(min(many_C[count], most - n)):
            n += 1
            taken += count
            sum_E1[n] += taken
    for rest in range(n + 1, most + 1):
        sum_E1[rest] += taken


@entry
def _near_MLE1(of_rank_MLGE, ranks):  # type: ignore[no-untyped-def]
    """Choices that stay among `ranks` successive ranks, summed over these sets, at the most.

    First: of the n experts that each set chooses most, for every n. Second: of each expert in the set that chooses it
    most, and in the n sets and experts that come next. By counting who has how many choices: a sort of small numbers.
    """
    microbatches, layers, n_ranks, experts = of_rank_MLGE.shape
    near_MLE1 = np.zeros((microbatches, layers, experts + 1), np.int64)
    spread_MLE1 = np.zeros((microbatches, layers, experts + 1), np.int64)
    of_set_E, best_E = np.zeros(experts, np.int64), np.zeros(experts, np.int64)
    for m in range(microbatches):
        for layer in range(layers):
            most = of_rank_MLGE[m, layer].sum(axis=0).max()
            many_C, rest_C = np.zeros(most + 1, np.int64), np.zeros(most + 1, np.int64)
            best_E[:] = 0
            for first in range(0, n_ranks, ranks):
                of_set_E[:] = of_rank_MLGE[m, layer, first]
                for rank in range(first + 1, min(first + ranks, n_ranks)):
                    for expert in range(experts):
                        of_set_E[expert] += of_rank_MLGE[m, layer, rank, expert]
                for expert in range(experts):
                    count = of_set_E[expert]
                    many_C[count] += 1
                    rest_C[min(count, best_E[expert])] += first > 0  # one of both is not the most
                    best_E[expert] = max(count, best_E[expert])
                _add_largest(many_C, near_MLE1[m, layer])
                many_C[:] = 0
            spread_MLE1[m, layer] += best_E.sum()
            _add_largest(rest_C, spread_MLE1[m, layer])
    return near_MLE1, spread_MLE1


class BatchLoads:
    """Pooled loads of several batches, side by side; and what layouts that share them have found of them.

    Parameters
    ----------
    loads_B
        Of each batch.
    """

    def __init__(self, loads_B: Sequence[PooledLoads]) -> None:
        self.loads_B = loads_B
        self.rows_LB = np.stack([loads.rows_L for loads in loads_B], axis=1)
        self.hits_LB = np.stack([loads.hits_L for loads in loads_B], axis=1)
        self.hottest_LB = np.stack([loads.hottest_L for loads in loads_B], axis=1)
        self.every_choice = all(loads.every_choice for loads in loads_B)
        self._found: dict[tuple[object, ...], Float] = {}

    def once(self, key: tuple[object, ...], find: Callable[[], Float]) -> Float:
        """What is found of these loads, once for each key, which names all that it depends on beside them."""
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]

    def near_part_LB(self, ranks: int, slots: int) -> Float:
        """As of `PooledLoads`."""
        key = ("near part", ranks, slots)
        return self.once(key, lambda: np.stack([loads.near_part_L(ranks, slots) for loads in self.loads_B], axis=1))

    def lost_hits_LB(self, ranks: int, slots: int) -> Float:
        """As of `PooledLoads`."""
        key = ("lost hits", ranks, slots)
        return self.once(key, lambda: np.stack([loads.lost_hits_L(ranks, slots) for loads in self.loads_B], axis=1))


class LoadsOfSteps:
    """Pooled loads of a question's steps, each counted once however many layouts share it."""

    def __init__(self, question: ServingQuestion, phase: str) -> None:
        self._question, self._phase = question, phase
        self._known: dict[tuple[int, int], PooledLoads] = {}
        self._batches: dict[tuple[int, ...], BatchLoads] = {}
        self._ranks = (0, 0, 0)

    def of(self, cut: ServingLayout, batches: Sequence[int]) -> BatchLoads:
        """Those of the steps of a layout, cut into its microbatches, with other batches."""
        ranks = (cut.dp, cut.tp, cut.cp)
        if ranks != self._ranks:  # counts are large: whoever asks for the layouts of some ranks together finds them
            self._ranks = ranks
            self._known.clear()
            self._batches.clear()
        key = (cut.microbatches, *batches)
        if key not in self._batches:
            self._batches[key] = BatchLoads([self._one(cut, batch) for batch in batches])
        return self._batches[key]

    def _one(self, cut: ServingLayout, batch: int) -> PooledLoads:
        key = (cut.microbatches, batch)
        if key not in self._known:
            self._known[key] = self._count(cut, batch)
        return self._known[key]

    def _count(self, cut: ServingLayout, batch: int) -> PooledLoads:
        question = self._question
        step = question.step(cut.dp, batch, self._phase)
        parts = step.split(cut.microbatches) if cut.microbatches > 1 else [step]
        at_home = cut.cp == 1 or self._phase == "decode"
        ranks = Layout(ep=cut.ranks_of_stage, tp=cut.tp, cp=cut.cp)
        return PooledLoads.of(
            [_count_LGE(question, part, ranks) for part in parts],
            [part.n_tokens for part in parts],
            question.model.choices,
            at_home=at_home,
        )


def _count_LGE(question: ServingQuestion, step: Step, ranks: Layout) -> Int:
    """Choices of each expert by the tokens of each rank, layer by layer."""
    home_T = ranks.homes_T(step.source_T).astype(np.int64)
    return np.asarray(
        _counted_LGE(question.trace.experts_TLK, step.token_T, home_T, ranks.ranks, question.model.experts)
    )


@entry
def _counted_LGE(experts_TLK, token_T, home_T, ranks, experts):  # type: ignore[no-untyped-def]
    """Choices of each expert by the tokens of each rank; a trace has no other experts than the model."""
    _, layers, choices = experts_TLK.shape
    counted_LGE = np.zeros((layers, ranks, experts), np.int32)
    for t in range(len(token_T)):
        for layer in range(layers):
            for k in range(choices):
                expert = experts_TLK[token_T[t], layer, k]
                if expert < experts:  # none is `NO_CHOICE`
                    counted_LGE[layer, home_T[t], expert] += 1
    return counted_LGE
