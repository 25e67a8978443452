"""The space of training layouts: every combination, each legal or refused with a reason that is counted."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from moecast.errors import MoecastError
from moecast.placement.layouts.space import divisors
from moecast.placement.layouts.training.layout import TrainingLayout
from moecast.sim.attention_shape import AttentionShape, LinearAttention
from moecast.sim.schedules.pipeline import Pipeline, find_pipeline_schedule
from moecast.sim.whole import whole

if TYPE_CHECKING:
    from moecast.placement.layouts.training.question import TrainingQuestion
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import DispatchMode

SCHEDULES = ("1f1b", "interleaved_1f1b", "1f1b_overlapped", "zb_h1", "zb_v", "dualpipe", "dualpipe_v")
MODES: tuple[DispatchMode, ...] = ("per_domain", "nccl")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpace:
    """What is searched: the values of every axis; `layouts` gives the combinations.

    Parameters
    ----------
    gpus
        GPUs of the job: layouts use all of them.
    most_tp, most_cp, most_pp, most_etp
        The largest degrees to try.
    virtual, schedules, microbatches, recomputes, zeros, dispatch
        Values of these axes.

    Raises
    ------
    ValueError
        A number below 1, or an axis without a value.
    """

    gpus: int
    most_tp: int = 8
    most_cp: int = 2
    most_pp: int = 32
    most_etp: int = 2
    most_ep: int = 1024
    virtual: tuple[int, ...] = (1, 2, 4)
    schedules: tuple[str, ...] = SCHEDULES
    microbatches: tuple[int, ...] = (1, 2, 4)
    recomputes: tuple[str, ...] = ("none", "selective", "full")
    zeros: tuple[int, ...] = (0, 1, 2, 3)
    dispatch: tuple[DispatchMode, ...] = MODES
    refused: Counter[str] = field(default_factory=Counter, compare=False)

    def __post_init__(self) -> None:
        for name in ("gpus", "most_tp", "most_cp", "most_pp", "most_etp", "most_ep"):
            whole(name, getattr(self, name))
        for name in ("virtual", "schedules", "microbatches", "recomputes", "zeros", "dispatch"):
            if not getattr(self, name):
                raise ValueError(f"{name} = (): at least one value")

    def layouts(self, question: TrainingQuestion) -> Iterator[TrainingLayout]:
        """Every legal layout, once; what is refused is counted in `refused`, by reason."""
        self.refused.clear()
        for tp, cp, pp, ep, etp in self._degrees():
            if reason := next(_degree_refusals(question, tp, cp, pp, ep), ""):
                self.refused[reason] += 1
                continue
            for schedule, virtual in itertools.product(self.schedules, self.virtual):
                yield from self._piped(
                    question,
                    TrainingLayout(
                        tp=tp,
                        cp=cp,
                        pp=pp,
                        dp=self.gpus // (tp * cp * pp),
                        ep=ep,
                        etp=etp,
                        schedule=schedule,
                        virtual=virtual,
                    ),
                )

    def _degrees(self) -> Iterator[tuple[int, int, int, int, int]]:
        for pp in self._up_to(self.most_pp, self.gpus):
            stage = self.gpus // pp
            for tp in self._up_to(self.most_tp, stage):
                for cp in self._up_to(self.most_cp, stage // tp):
                    for etp in self._up_to(self.most_etp, stage):
                        for ep in self._up_to(self.most_ep, stage // etp):
                            yield tp, cp, pp, ep, etp

    @staticmethod
    def _up_to(most: int, ranks: int) -> list[int]:
        return [degree for degree in divisors(ranks) if degree <= most]

    def _piped(self, question: TrainingQuestion, one: TrainingLayout) -> Iterator[TrainingLayout]:
        """All ways to run a pipeline of some degrees."""
        if one.pp == 1 and (one.virtual > 1 or one.schedule not in ("1f1b", "1f1b_overlapped")):
            self.refused["without a pipeline 1f1b says it"] += 1
            return
        cut = cut_with_experts(question.model, one.pp * one.virtual)
        if cut is None:
            self.refused["a pipeline stage without an MoE layer"] += 1
            return
        modes: tuple[DispatchMode | None, ...] = self.dispatch if one.ep > 1 else (None,)
        for microbatch in self.microbatches:
            if reason := _pipeline_refusal(question, one, microbatch):
                self.refused[reason] += 1
                continue
            for mode, recompute, zero in itertools.product(modes, self.recomputes, self.zeros):
                if question.recipe.overlap_param_gather and not zero:
                    self.refused["without ZeRO no parameters are gathered beside passes"] += 1
                    continue
                yield TrainingLayout(
                    tp=one.tp,
                    cp=one.cp,
                    dp=one.dp,
                    pp=one.pp,
                    virtual=one.virtual,
                    ep=one.ep,
                    etp=one.etp,
                    schedule=one.schedule,
                    microbatch=microbatch,
                    recompute=recompute,
                    zero=zero,
                    dispatch=mode,
                    cut=cut,
                )


def _degree_refusals(question: TrainingQuestion, tp: int, cp: int, pp: int, ep: int) -> Iterator[str]:
    """Why degrees do not go with the model."""
    model = question.model
    mixers = [mixer for mixer in (model.attention, *model.more_attention) if mixer is not None]
    if any(mixer.heads % tp for mixer in mixers if isinstance(mixer, AttentionShape)):
        yield "TP does not divide the heads"
    if model.experts % ep:
        yield "EP does not divide the experts"
    if cp > 1 and any(isinstance(mixer, LinearAttention) for mixer in mixers):
        yield "CP of linear attention is not simulated"
    if cp > 1 and model.attention.sparse_keys:
        yield "CP of chosen keys wants an all-gather before"
    if question.recipe.sequence % (2 * cp * tp):
        yield "CP and TP do not cut a sequence into equal parts"
    if pp > model.n_layers:
        yield "more pipeline stages than layers"


def _pipeline_refusal(question: TrainingQuestion, one: TrainingLayout, microbatch: int) -> str:
    count, rest = divmod(question.recipe.batch, one.dp * microbatch)
    if rest or not count:
        return "the batch is no whole number of microbatches"
    try:
        return _unsupported(one.schedule, one.pp, one.virtual, count)
    except MoecastError:
        return "more passes than a pipeline may have"


@lru_cache(maxsize=10_000)
def _unsupported(schedule: str, pp: int, virtual: int, microbatches: int) -> str:
    sizes = Pipeline(pp=pp, virtual=virtual, microbatches=microbatches)
    asked = find_pipeline_schedule(schedule).supports(sizes)
    return "" if asked is None else f"{schedule} does not go with the chunks or microbatches"


@lru_cache(maxsize=1000)
def cut_with_experts(model: ModelShape, stages: int) -> tuple[int, ...] | None:
    """Layers dealt to stages as evenly as can be with an MoE layer in each; empty: a plan's own even cut is that.

    Where the first stages would have dense layers only, all leading dense layers and one MoE layer are the first's.
    """
    if stages > model.n_layers:
        return None
    even = dealt(model.n_layers, stages)
    if _all_have(even, stages, model.moe_layer_ids):
        return ()
    first = model.moe_layer_ids[0] + 1
    if stages < 2 or model.n_layers - first < stages - 1:
        return None
    cut = (*(0,) * first, *(stage + 1 for stage in dealt(model.n_layers - first, stages - 1)))
    return cut if _all_have(cut, stages, model.moe_layer_ids) else None


def dealt(n_layers: int, stages: int) -> tuple[int, ...]:
    """As many layers to each stage, the first ones one more."""
    each, more = divmod(n_layers, stages)
    return tuple(stage for stage in range(stages) for _ in range(each + (stage < more)))


def _all_have(cut: tuple[int, ...], stages: int, moe_layer_ids: tuple[int, ...]) -> bool:
    return len({cut[layer] for layer in moe_layer_ids}) == stages
