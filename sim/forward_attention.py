"""The attention of a forward pass: projections and core on each rank, and what ranks send each other for it.

Axes: T token, G rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moecast.sim import compute
from moecast.sim.attention_shape import AttentionShape, Mixer
from moecast.sim.context.attention import ContextAttention, around_core
from moecast.sim.context.shared import SharedContext
from moecast.sim.model import ModelShape
from moecast.sim.parts import Part
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import Exchange, Task
from moecast.sim.shared_tokens import SharedTokens
from moecast.sim.stage_tasks import compute_of
from moecast.sim.step import Step
from moecast.sim.step_tokens import StepTokens
from moecast.topology import Hardware

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionStage:
    """Attention at the layers of one step; `sequences`: how ranks share these, where they do."""

    tokens: StepTokens
    shared: SharedTokens
    sequences: SharedContext | None
    _alike: dict[tuple[object, ...], Float] = field(default_factory=dict, init=False, repr=False)

    @property
    def placed(self) -> PlacedModel:
        """The model as the plan lays it out."""
        return self.tokens.placed

    @property
    def model(self) -> ModelShape:
        """The model's shape."""
        return self.placed.model

    @property
    def step(self) -> Step:
        """The step."""
        return self.tokens.step

    def tasks(self, layer: int, *, first: bool, rest: bool, norms: bool = True) -> Iterator[Task]:
        """Attend at a hidden layer: what stands before the core (`first`), the core and what follows (`rest`)."""
        row, moe = self.tokens.moe_layers_before(layer), self.tokens.moe_index(layer)
        mixer = self.model.mixer_of(layer)
        if first and self.placed.mode.stay and row and not self.step.decodes_only:
            yield self.shared.share_context(self.tokens.tokens_G(row), moe)
        if mixer is None:  # the layer is an MLP or experts only
            return
        if self.placed.plan.cp > 1 and isinstance(mixer, AttentionShape):
            yield from self._shared_sequences(layer, mixer, first=first, rest=rest, norms=norms)
            return
        into_G = np.zeros(self.placed.sites.n_ranks)
        if isinstance(mixer, AttentionShape) and not (first and rest):
            into_G = compute.into_seconds(
                self.model,
                self._hardware,
                self.tokens.attended_G(row),
                shape=mixer,
                tp=self.placed.plan.tp,
                phase=self.step.kernels,
            )
        if first:
            yield from self._gather(layer)
        if first and not rest:
            yield compute_of("attention", moe, into_G)
        if rest:
            seconds_G = self._seconds_alike(layer, row, mixer) - into_G
            if norms:
                seconds_G = seconds_G + compute.norm_seconds(self.model, self._hardware, self.tokens.kept_G(row))
            yield compute_of("attention", moe, seconds_G)
            yield from self.shared.scatter(moe)

    def _shared_sequences(
        self, layer: int, mixer: AttentionShape, *, first: bool, rest: bool, norms: bool
    ) -> Iterator[Task]:
        """Attend where ranks share sequences: projections, the core with what is sent for it, and the rest."""
        moe, tokens_G = self.tokens.moe_index(layer), self.tokens.attended_G(self.tokens.moe_layers_before(layer))
        into_G, behind_G = around_core(self.placed, mixer, tokens_G)
        if first:
            yield from self._gather(layer)
            yield compute_of("attention", moe, into_G)
        if rest:
            keys_G, scored_G = self.tokens.keys_at(layer)
            yield from ContextAttention(
                placed=self.placed,
                step=self.step,
                shared=self.sequences,
                shape=mixer,
                reads=mixer.reads_of(layer),
                moe=moe,
                tokens_G=tokens_G,
                keys_G=keys_G,
                scored_G=scored_G,
            ).tasks()
            if norms:
                kept_G = self.tokens.kept_G(self.tokens.moe_layers_before(layer))
                behind_G = behind_G + compute.norm_seconds(self.model, self._hardware, kept_G)
            yield compute_of("attention", moe, behind_G)
            yield from self.shared.scatter(moe)

    def _seconds_alike(self, layer: int, row: int, mixer: Mixer) -> Float:
        """Seconds of attention on each rank, once for layers that attend alike over the same tokens."""
        reads = tuple(mixer.reads_of(layer)) if isinstance(mixer, AttentionShape) else ()
        # tokens are elsewhere at each layer only where they stay at their experts
        key = (mixer, reads, row if self.placed.mode.stay else 0)
        if key not in self._alike:
            self._alike[key] = self._attention_seconds(layer, row, mixer)
        return self._alike[key]

    def _attention_seconds(self, layer: int, row: int, mixer: Mixer) -> Float:
        """Seconds of attention on each rank.

        The parts of a step attend each by itself; their tokens go through the projections together.
        """
        parts = [self._part_seconds(layer, row, mixer, part, of_T) for part, of_T in self.step.parts]
        if len(parts) == 1 or not isinstance(mixer, AttentionShape):
            return np.asarray(np.sum(parts, axis=0), np.float64)
        model, hardware, tp = self.model, self._hardware, self.placed.plan.tp
        apart_G = [
            compute.projection_seconds(
                model, hardware, self.tokens.attended_G(row, of_T), shape=mixer, tp=tp, phase=part
            )
            for part, of_T in self.step.parts
        ]
        together_G = compute.projection_seconds(
            model, hardware, self.tokens.attended_G(row), shape=mixer, tp=tp, phase=self.step.kernels
        )
        return np.asarray(np.sum(parts, axis=0) - np.sum(apart_G, axis=0) + together_G, np.float64)

    def _part_seconds(self, layer: int, row: int, mixer: Mixer, part: Part, of_T: Bool | None) -> Float:
        """Seconds of attention of one part of the step."""
        reads = mixer.reads_of(layer) if isinstance(mixer, AttentionShape) else ((None, 1),)
        return compute.attention_seconds(
            self.model,
            self._hardware,
            phase=part,
            tokens_G=self.tokens.attended_G(row, of_T),
            context_sum_G=self.tokens.keys_G(row, None, part, of_T),
            window_sum_G=None
            if reads == ((None, 1),)
            else sum(self.tokens.keys_G(row, most, part, of_T) / share for most, share in reads),
            mixer=mixer,
            tp=self.placed.plan.tp,
            queries=part.readers(self.step.queries),
        )

    def _gather(self, layer: int) -> Iterator[Exchange]:
        kept = not self.tokens.after_experts(layer)
        yield from self.shared.gather(self.tokens.moe_index(layer), self.tokens.tokens_G(0), kept=kept)

    @property
    def _hardware(self) -> Hardware:
        return self.placed.sites.cluster.hardware
