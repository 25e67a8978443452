"""What a step's loads come to when they are pooled over the ranks of an EP group: all that holds for any placement.

Axes: T token, L MoE layer, E expert, K choice, G rank that holds tokens, M microbatch, X set of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.compiled import njit
from moecast.sim.layout import Layout

if TYPE_CHECKING:
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.serving_question import ServingQuestion
    from moecast.sim.step import Step

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.integer]
Int32 = npt.NDArray[np.int32]


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
    _near: dict[int, Float] = field(default_factory=dict, repr=False)
    _top: list[Float] = field(default_factory=list, repr=False)

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

    def top_part_L(self, n_L: Int) -> Float:
        """The part of all choices that the n experts with most take together, at the most of any microbatch."""
        if not self._top:
            sorted_MLE = -np.sort(-self.load_MLE, axis=2)
            sums_MLE = np.concatenate([np.zeros((*sorted_MLE.shape[:2], 1)), np.cumsum(sorted_MLE, axis=2)], axis=2)
            self._top.append(np.asarray((sums_MLE / np.maximum(sums_MLE[:, :, -1:], 1)).max(axis=0)))
        part_LE = self._top[0]
        taken = np.clip(n_L, 0, part_LE.shape[1] - 1)[:, None]
        return np.asarray(np.take_along_axis(part_LE, taken, axis=1)[:, 0])

    def near_part_L(self, ranks: int, slots: int) -> Float:
        """The part of all choices that stay among successive `ranks` that hold `slots` together, at the most.

        Those of the experts that the ranks' own tokens choose most, whatever placement.
        """
        if self.of_rank_MLGE is None:
            return np.ones(len(self.rows_L))
        if ranks not in self._near:
            total_ML1 = np.maximum(self.load_MLE.sum(axis=2), 1)[:, :, None]
            self._near[ranks] = np.asarray((_near_MLE1(self.of_rank_MLGE, ranks) / total_ML1).max(axis=0))
        near_LE1 = self._near[ranks]
        return near_LE1[:, min(slots, near_LE1.shape[1] - 1)]


@njit()
def _near_MLE1(of_rank_MLGE, ranks):  # type: ignore[no-untyped-def]
    """Choices of the n experts that each `ranks` successive ranks choose most, for every n, summed over these sets.

    By counting how many experts have how many choices: a sort of small whole numbers.
    """
    microbatches, layers, n_ranks, experts = of_rank_MLGE.shape
    near_MLE1 = np.zeros((microbatches, layers, experts + 1), np.int64)
    of_set_E = np.zeros(experts, np.int64)
    many_C = np.zeros(1, np.int64)
    for m in range(microbatches):
        for layer in range(layers):
            for first in range(0, n_ranks, ranks):
                of_set_E[:] = of_rank_MLGE[m, layer, first]
                for rank in range(first + 1, min(first + ranks, n_ranks)):
                    for expert in range(experts):
                        of_set_E[expert] += of_rank_MLGE[m, layer, rank, expert]
                most = 0
                for expert in range(experts):
                    most = max(most, of_set_E[expert])
                if most >= len(many_C):
                    many_C = np.zeros(2 * most + 1, np.int64)
                for expert in range(experts):
                    many_C[of_set_E[expert]] += 1
                n, taken = 0, 0
                for count in range(most, 0, -1):
                    for _ in range(many_C[count]):
                        n += 1
                        taken += count
                        near_MLE1[m, layer, n] += taken
                    many_C[count] = 0
                many_C[0] = 0
                for rest in range(n + 1, experts + 1):
                    near_MLE1[m, layer, rest] += taken
    return near_MLE1


class LoadsOfSteps:
    """Pooled loads of a question's steps, each counted once however many layouts share it."""

    def __init__(self, question: ServingQuestion, phase: str) -> None:
        self._question, self._phase = question, phase
        self._known: dict[tuple[int, int], PooledLoads] = {}
        self._ranks = (0, 0, 0)

    def of(self, cut: ServingLayout, batch: int) -> PooledLoads:
        """Those of the step of a layout, cut into its microbatches, with another batch."""
        ranks = (cut.dp, cut.tp, cut.cp)
        if ranks != self._ranks:  # counts are large: whoever asks for the layouts of some ranks together finds them
            self._ranks = ranks
            self._known.clear()
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
            [_count_LGE(question, part, ranks) for part in parts], [part.n_tokens for part in parts],
            question.model.choices, at_home=at_home,
        )  # fmt: skip


def _count_LGE(question: ServingQuestion, step: Step, ranks: Layout) -> Int:
    """Choices of each expert by the tokens of each rank, layer by layer."""
    home_T = ranks.homes_T(step.source_T).astype(np.int64)
    return np.asarray(
        _counted_LGE(question.trace.experts_TLK, step.token_T, home_T, ranks.ranks, question.model.experts)
    )


@njit()
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
