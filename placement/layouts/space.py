"""The space of serving layouts: every combination, each legal or refused with a reason that is counted."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moecast.placement.layouts.abilities import no_option_for
from moecast.placement.layouts.serving_layout import SEQUENTIAL, ServingLayout
from moecast.sim.attention_shape import AttentionShape, LinearAttention
from moecast.sim.whole import whole

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import DispatchMode

BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
DECODE_MODES: tuple[DispatchMode, ...] = ("per_choice", "per_rank", "all_gather")
PREFILL_MODES: tuple[DispatchMode, ...] = ("per_domain", "per_rank", "all_gather")
MOST_SEQUENCES = 16_384
"""Of a step of an instance: more are no question of a layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What is searched: the values of every axis; `layouts` gives the combinations.

    Parameters
    ----------
    model
        Whose layouts.
    gpus
        GPUs there are; instances of every size that divides them are tried.
    phase
        `decode` or `prefill`.
    batches
        Of decode: sequences on each data-parallel rank. Of prefill: tokens on each.
    most_tp, most_cp, most_pp, most_etp
        The largest degrees to try; None: as many as there are GPUs.
    dispatch, schedules, spare_slots
        Values of these axes. Mode ``stay`` is no engine's; it can be asked for.
    engine
        Only what this serving engine has options for; of another name, or none: all.

    Raises
    ------
    ValueError
        A number below 1, or an axis without a value.
    """

    model: ModelShape
    gpus: int
    phase: str = "decode"
    batches: tuple[int, ...] = BATCHES
    most_tp: int | None = None
    most_cp: int | None = 2
    most_pp: int | None = 8
    most_etp: int | None = None
    dispatch: tuple[DispatchMode, ...] = DECODE_MODES
    schedules: tuple[str, ...] = (SEQUENTIAL, "shared-beside", "two-batch")
    spare_slots: tuple[int, ...] = (0, 1)
    engine: str = ""
    refused: Counter[str] = field(default_factory=Counter, compare=False)

    def __post_init__(self) -> None:
        whole("gpus", self.gpus)
        for name in ("batches", "dispatch", "schedules", "spare_slots"):
            if not getattr(self, name):
                raise ValueError(f"{name} = (): at least one value")

    def layouts(self) -> Iterator[ServingLayout]:
        """Every legal layout, once; what is refused is counted in `refused`, by reason."""
        self.refused.clear()
        for tp, cp, dp, pp, etp in self._degrees():
            refusals = list(self._degree_refusals(tp, cp, pp, etp, tp * cp * dp))
            if refusals:
                self.refused[refusals[0]] += 1
                continue
            for ways in self._ways(tp, cp, dp, pp, etp):
                yield from self._batched(ways)

    def _degrees(self) -> Iterator[tuple[int, int, int, int, int]]:
        """All products of attention's degrees that make an instance, with all cuts of experts."""
        for instance in divisors(self.gpus):
            for pp in self._up_to(self.most_pp, instance):
                stage = instance // pp
                for tp in self._up_to(self.most_tp, stage):
                    for cp in self._up_to(self.most_cp, stage // tp):
                        for etp in self._up_to(self.most_etp, stage):
                            yield tp, cp, stage // tp // cp, pp, etp

    @staticmethod
    def _up_to(most: int | None, ranks: int) -> list[int]:
        return [degree for degree in divisors(ranks) if most is None or degree <= most]

    def _degree_refusals(self, tp: int, cp: int, pp: int, etp: int, ranks: int) -> Iterator[str]:
        """Why degrees do not go with the model."""
        model = self.model
        mixers = [mixer for mixer in (model.attention, *model.more_attention) if mixer is not None]
        if any(mixer.heads % tp for mixer in mixers if isinstance(mixer, AttentionShape)):
            yield "TP does not divide the heads"
        if ranks // etp > model.experts:
            yield "more ranks in the EP group than experts"
        if model.expert_intermediate % etp:
            yield "ETP does not divide the experts' width"
        if cp > 1 and any(isinstance(mixer, LinearAttention) for mixer in mixers):
            yield "CP of linear attention is not simulated"
        if cp > 1 and self.phase == "prefill" and model.attention.sparse_keys:
            yield "CP of chosen keys wants an all-gather before"
        if pp > 1 and not _every_stage_has_experts(model, pp):
            yield "a pipeline stage without an MoE layer"

    def _ways(self, tp: int, cp: int, dp: int, pp: int, etp: int) -> Iterator[ServingLayout]:
        """All ways to run some degrees, before there is a batch."""
        ep = tp * cp * dp // etp
        for sequence_parallel in (True, False) if tp > 1 else (True,):
            summed = not sequence_parallel and ep * etp == tp
            modes: tuple[DispatchMode | None, ...] = (None,) if ep == 1 or summed else self.dispatch
            for dispatch, spare, schedule in itertools.product(modes, self.spare_slots, self.schedules):
                reason = self._way_refusal(ep, pp, spare, schedule, sends=ep > 1 and not summed)
                if reason:
                    self.refused[reason] += 1
                    continue
                way = ServingLayout(
                    tp=tp,
                    cp=cp,
                    dp=dp,
                    pp=pp,
                    etp=etp,
                    sequence_parallel=sequence_parallel,
                    dispatch=dispatch,
                    schedule=schedule,
                    spare_slots=spare,
                )
                if missing := no_option_for(self.engine, way):
                    self.refused[f"{self.engine} has no option for {missing[0]}"] += 1
                    continue
                yield way

    def _way_refusal(self, ep: int, pp: int, spare: int, schedule: str, *, sends: bool) -> str:
        if spare and ep == 1:
            return "redundant slots of a single holder"
        if schedule == SEQUENTIAL:
            return ""
        if pp > 1:
            return "stages of a pipeline run in sequence"
        if not sends:
            return "nothing is dispatched that work could stand beside"
        if schedule == "shared-beside" and not self.model.shared_intermediate:
            return "no shared experts to stand beside dispatch"
        return ""

    def _batched(self, ways: ServingLayout) -> Iterator[ServingLayout]:
        for batch in self.batches:
            for microbatches in divisors(ways.pp):
                reason = self._batch_refusal(ways, batch, microbatches)
                if reason:
                    self.refused[reason] += 1
                    continue
                yield ServingLayout(
                    tp=ways.tp,
                    cp=ways.cp,
                    dp=ways.dp,
                    pp=ways.pp,
                    etp=ways.etp,
                    sequence_parallel=ways.sequence_parallel,
                    dispatch=ways.dispatch,
                    schedule=ways.schedule,
                    spare_slots=ways.spare_slots,
                    microbatches=microbatches,
                    batch=batch,
                )

    def _batch_refusal(self, ways: ServingLayout, batch: int, microbatches: int) -> str:
        if batch < microbatches * ways.cp:
            return "fewer sequences than microbatches or ranks that share them"
        if ways.schedule == "two-batch" and batch < 2:
            return "a batch of 1 has no halves"
        if batch * ways.dp > MOST_SEQUENCES and self.phase == "decode":
            return f"more than {MOST_SEQUENCES} sequences in an instance"
        return ""


def divisors(number: int) -> list[int]:
    """All whole numbers that divide one, in order."""
    return [part for part in range(1, number + 1) if number % part == 0]


def _every_stage_has_experts(model: ModelShape, pp: int) -> bool:
    """Whether each of `pp` equal stages has an MoE layer."""
    if pp > model.n_layers:
        return False
    stages = (part for part in layers_of_stages(model.n_layers, pp))
    return all(any(layer in model.moe_layer_ids for layer in stage) for stage in stages)


def layers_of_stages(n_layers: int, pp: int) -> Iterator[range]:
    """Layers of each stage: as many to each, the first ones one more."""
    first, (each, more) = 0, divmod(n_layers, pp)
    for stage in range(pp):
        count = each + (stage < more)
        yield range(first, first + count)
        first += count
