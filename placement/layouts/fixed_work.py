"""Work of a step that no placement changes: attention, dense layers, router, shared experts, and their sums.

Axes: B batch, H hidden layer (H1: sums over all layers before one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim import attention, compute
from moecast.sim.attention_shape import AttentionShape
from moecast.sim.engines import find_engine
from moecast.sim.forward import ForwardPass
from moecast.sim.network import find_rung
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import Compute, Exchange, StepProgram

if TYPE_CHECKING:
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.serving_question import ServingQuestion
    from moecast.sim.attention_shape import Mixer
    from moecast.sim.collectives.choice import Choice

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

HALVES = 2
"""Parts into which a schedule cuts a step, at the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedWork:
    """Least seconds of the fixed work of a rank, for each batch.

    Parameters
    ----------
    compute_H1B
        What it computes, experts left out, over the layers before each.
    around_H1B
        What the exchanges around attention and dense layers add to a chain of work, setups and the sums after summed
        experts included.
    shared_H1B
        The part of `compute_H1B` that a schedule may put beside dispatch.
    first_B, last_B
        Embedding; LM head and the host.
    """

    compute_H1B: Float
    around_H1B: Float
    shared_H1B: Float
    first_B: Float
    last_B: Float

    def only(self, place: int) -> FixedWork:
        """That of one of the batches."""
        return FixedWork(**{each.name: getattr(self, each.name)[..., place : place + 1] for each in fields(self)})

    @classmethod
    def beside(cls, parts: Sequence[FixedWork]) -> FixedWork:
        """Those of several batches beside each other."""
        names = [each.name for each in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names})


def fixed_work(question: ServingQuestion, layout: ServingLayout, batch_B: Int, phase: str) -> FixedWork:
    """Sum the fixed work of a layout's degrees up, over hidden layers.

    Ranks that share tokens take equal runs of them, so each has at least its share rounded down. Every function of
    `moecast.sim.compute` rises with tokens, so that each sum is at most what any rank computes.
    """
    layers = _Layers(question, layout, batch_B, phase)
    parts = [layers.of(layer) for layer in range(question.model.n_layers)]
    zero_B = np.zeros((1, len(batch_B)))
    compute_H1B, around_H1B, shared_H1B = (
        np.concatenate([zero_B, np.cumsum([part[i] for part in parts], axis=0)]) for i in range(3)
    )
    return FixedWork(
        compute_H1B=compute_H1B,
        around_H1B=around_H1B,
        shared_H1B=shared_H1B,
        first_B=layers.first(),
        last_B=layers.last(),
    )


class _Layers:
    """The layers of one cut, each kind priced once."""

    def __init__(self, question: ServingQuestion, layout: ServingLayout, batch_B: Int, phase: str) -> None:
        self.model, self.hardware = question.model, question.cluster.hardware
        self.layout, self.phase, self.question = layout, phase, question
        self.shared_B = np.asarray(batch_B, np.int64)  # tokens of a data-parallel rank
        self.attended_B = np.floor_divide(self.shared_B, layout.cp)
        self.own_B = self.shared_B // (layout.tp * layout.cp)
        self.kept_B = self.own_B if layout.sequence_parallel else self.attended_B
        self.sum_B = self._all_reduce_s()
        self._attention: dict[tuple[object, ...], Float] = {}
        self._forwards: dict[int, list[ForwardPass]] = {}

    def of(self, layer: int) -> tuple[Float, Float, Float]:
        """(compute, exchanges around it, shared experts) of one layer."""
        model, is_moe = self.model, layer in self.model.moe_layer_ids
        total_B, around_B, shared_B = np.zeros((3, len(self.shared_B)))
        behind_experts = layer - 1 in model.moe_layer_ids and not self.layout.experts_are_summed
        mixer = model.mixer_of(layer)
        if mixer is not None:
            total_B = total_B + self._mixer_s(layer, mixer)
            around_B = around_B + self._gather_s(behind_experts) + self._scatter_s()
        if is_moe:
            shared_B = self._shared_s
            total_B = total_B + self._router_s + shared_B
            around_B = around_B + (self.sum_B if self.layout.experts_are_summed else 0.0)
        elif layer not in model.no_mlp_layers:
            total_B = total_B + self._dense_s
            around_B = around_B + self._gather_s(behind_experts and mixer is None) + self._scatter_s()
        return total_B, around_B, shared_B

    def first(self) -> Float:
        """Embedding."""
        return compute.embedding_seconds(self.model, self.hardware, self.kept_B)

    def last(self) -> Float:
        """LM head, of decode for all tokens, and what the engine's host adds to a step."""
        wanted_B = self.attended_B if self.phase == "decode" else np.zeros_like(self.attended_B)
        seconds_B = compute.head_seconds(self.model, self.hardware, wanted_B, tp=self.layout.tp)
        return seconds_B + find_engine(self.hardware.engine).step_s

    @cached_property
    def _router_s(self) -> Float:
        return compute.router_seconds(self.model, self.hardware, self.kept_B)

    @cached_property
    def _dense_s(self) -> Float:
        return compute.dense_layer_seconds(self.model, self.hardware, self.attended_B, tp=self.layout.tp)

    @cached_property
    def _shared_s(self) -> Float:
        summed = self.layout.experts_are_summed
        tokens_B, tp = (self.attended_B, self.layout.tp) if summed else (self.own_B, 1)
        return compute.shared_expert_seconds(self.model, self.hardware, tokens_B, tp=tp)

    def _mixer_s(self, layer: int, mixer: Mixer) -> Float:
        reads = mixer.reads_of(layer) if isinstance(mixer, AttentionShape) else ((None, 1),)
        key = (mixer, reads)
        if key not in self._attention:
            norms_B = compute.norm_seconds(self.model, self.hardware, self.kept_B)
            if self.layout.cp > 1 and self.phase == "prefill" and self._parts_are_known:
                each_B = np.array([self._shared_prompts_s(layer, int(rows)) for rows in self.shared_B])
            else:
                each_B = self._core_and_products_s(mixer, reads)
            self._attention[key] = norms_B + each_B
        return self._attention[key]

    @property
    def _parts_are_known(self) -> bool:
        """Whether a step goes through all layers whole, or by halves: stages of a pipeline wait for unequal parts."""
        return self.layout.pp == 1 and self.layout.microbatches <= HALVES

    def _shared_prompts_s(self, layer: int, rows: int) -> float:
        """What the rank computes that does least of attention over prompts which ranks share: the step itself is asked.

        How sequences are cut is the layout's and knows nothing of experts; all data-parallel ranks have alike ones. Of
        halves the mean; they may be of one token more than twice as many.
        """
        parts = self.layout.microbatches
        return min(self._of_whole_s(layer, tokens) for tokens in range(parts * rows, parts * rows + parts)) / parts

    def _of_whole_s(self, layer: int, tokens: int) -> float:
        """Seconds of all parts of a step of so many tokens."""
        if tokens not in self._forwards:
            ranks, parts = self.layout.tp * self.layout.cp, self.layout.microbatches
            alone = replace(
                self.layout,
                dp=1,
                pp=1,
                etp=ranks if ranks > self.model.experts else 1,
                sequence_parallel=True,
                dispatch=None,
                schedule="sequential",
                microbatches=1,
                spare_slots=0,
                batch=tokens,
            )
            placed = PlacedModel.of(self.question.cluster, self.model, alone.plan(self.model), phase=self.phase)
            step, trace = self.question.step(1, tokens, "prefill"), self.question.trace
            of_step = step.split(parts) if parts > 1 else [step]
            self._forwards[tokens] = [ForwardPass.of(placed, trace, part) for part in of_step]
        tasks = [task for forward in self._forwards[tokens] for task in forward.attention(layer, norms=False)]
        return float(np.sum([task.seconds_R for task in tasks if isinstance(task, Compute)], axis=0).min())

    def _core_and_products_s(self, mixer: Mixer, reads: tuple[tuple[int | None, int], ...]) -> Float:
        model, hardware, tp, cp = self.model, self.hardware, self.layout.tp, self.layout.cp
        every_B = self._keys_B(None)
        read_B = np.sum([self._keys_B(most) / share for most, share in reads], axis=0)
        if cp == 1 or not isinstance(mixer, AttentionShape):
            return attention.attention_seconds(
                model,
                hardware,
                phase=self.phase,
                tokens_G=self.attended_B,
                context_sum_G=every_B,
                window_sum_G=None if reads == ((None, 1),) else read_B,
                mixer=mixer,
                tp=tp,
            )
        # Ranks that share sequences: products of their own tokens; in decode a core over their part of all keys. What
        # the blocks of a prompt in several microbatches come to is left out.
        products_B = attention.projection_seconds(model, hardware, self.attended_B, shape=mixer, tp=tp)
        if self.phase != "decode":
            return products_B
        core_B = attention.core_seconds(
            model, hardware, phase="decode", tokens_G=self.shared_B, keys_G=read_B / cp, shape=mixer, tp=tp
        )
        return products_B + core_B

    def _keys_B(self, most: int | None) -> Float:
        """Keys that the tokens of a data-parallel rank read."""
        if self.phase == "decode":
            return np.asarray(self.shared_B * float(min(self.question.context, most or self.question.context)))
        context_BT = [self.question.step(1, int(batch), "prefill").context_T for batch in self.shared_B]
        return np.array([np.minimum(of_T, most).sum() if most else of_T.sum() for of_T in context_BT], np.float64)

    def _gather_s(self, behind_experts: bool) -> Float | float:
        """Bring tokens to all that share them: a setup, and where all send, what comes in."""
        layout = self.layout
        if layout.tp == 1 or (not layout.sequence_parallel and not behind_experts):
            return 0.0
        return self.hardware.collective_launch_s

    def _scatter_s(self) -> Float | float:
        """Add partial sums up."""
        if self.layout.tp == 1:
            return 0.0
        return self.hardware.collective_launch_s if self.layout.sequence_parallel else self.sum_B

    def _all_reduce_s(self) -> Float:
        """Seconds of the all-reduce of the tokens that ranks share, by themselves: the rank that is done first."""
        layout, seconds_B = self.layout, np.zeros(len(self.shared_B))
        if layout.tp == 1 or layout.sequence_parallel:
            return seconds_B
        alone = replace(
            layout, cp=1, dp=1, pp=1, etp=layout.tp, dispatch=None, schedule="sequential", microbatches=1, spare_slots=0
        )
        placed = PlacedModel.of(self.question.cluster, self.model, alone.plan(self.model), phase=self.phase)
        peers_DM = placed.plan.layout.peers("tp")
        for i, rows in enumerate(self.attended_B):
            seconds_B[i] = _alone_s(placed, peers_DM, np.array([rows]))
        return seconds_B


def _alone_s(placed: PlacedModel, peers_DM: npt.NDArray[np.int32], rows_D: Int) -> float:
    """A sum of hidden vectors by itself under the rung ``bound``, by the fastest of all that may carry it.

    In a step it is carried by the one that is reckoned to be fastest, of as many rows or more, and its ranks wait for
    the last of them: so every rank leaves no sooner than it entered and this.
    """
    return min(_carried_s(placed, peers_DM, rows_D, choice) for choice in placed.sum_choices)


def _carried_s(placed: PlacedModel, peers_DM: npt.NDArray[np.int32], rows_D: Int, choice: Choice) -> float:
    exchange = Exchange(
        kind="other",
        layer=-1,
        flows=choice.template.counted(rows_D),
        setup_s=choice.setup_s(placed.sites),
        barrier=True,
        group_R=np.zeros(peers_DM.size, np.int32),
    )
    program = StepProgram(
        tasks=(exchange,),
        n_ranks=peers_DM.size,
        capacity_J=placed.capacity_J,
        narrowest_J=placed.narrowest_J,
        link_names_J=placed.link_names_J,
    )
    return float(find_rung("bound").run(program).leave_S[0].min())
