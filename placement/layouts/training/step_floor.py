"""Lower bounds on a training step, for any placement of experts: quick by the busiest rank, sharp by the order.

The quick one needs no order, only what any schedule does: before a pipeline rank's first cell some microbatch has come
forward through all pieces before its first; it does all passes of all microbatches of its chunks; and after its last
gradient of inputs some microbatch has to go back through all pieces before. Gradients of weights may wait until after
that, so the way back and they are not added where a schedule puts them off. At last each rank reduces gradients
(`reduction_floor`) and runs the optimizer. The sharp one is the schedule's own order (`pipeline_floor`) in the place of
the busiest rank. Both use the mean rank's times (`layer_floor`).

Axes: H hidden layer, V virtual stage, C chunk, G pipeline rank.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.layouts.training.fitting import TrainingMemory
from moecast.placement.layouts.training.layer_floor import LayerFloors, LayerSeconds
from moecast.placement.layouts.training.orders import chunks_of, order_table
from moecast.placement.layouts.training.pipeline_floor import time_cells
from moecast.placement.layouts.training.reduction_floor import reduced_s
from moecast.placement.layouts.training.space import dealt
from moecast.sim.schedules.pipeline.sends import HIDDEN_BYTES

if TYPE_CHECKING:
    from moecast.placement.layouts.training.fitting import Stage
    from moecast.placement.layouts.training.layout import TrainingLayout
    from moecast.placement.layouts.training.question import TrainingQuestion
    from moecast.sim.schedules.pipeline import Chunks

Float = npt.NDArray[np.float64]

SAFETY = 1 - 1e-9  # sums of thousands of cells round
WHOLE_BACKWARD = ("1f1b", "interleaved_1f1b", "gpipe")
"""Schedules that leave no gradient of weights for later."""
PAIRED = ("1f1b_overlapped", "dualpipe", "dualpipe_v")
"""Schedules that put what one microbatch sends beside what another computes."""


class TrainingFloors:
    """Lower bounds for the layouts of one question."""

    def __init__(self, question: TrainingQuestion) -> None:
        self.question = question
        self.layers = LayerFloors(question)
        self.memory = TrainingMemory(question)
        self._busiest: dict[tuple[object, ...], float] = {}
        self._sharp: dict[TrainingLayout, float] = {}
        self._optimizer: dict[tuple[object, ...], float] = {}
        self._reduced: dict[tuple[object, ...], tuple[float, float]] = {}

    def quick(self, layout: TrainingLayout) -> float:
        """Seconds of its step at the least, in a few microseconds."""
        key = passes_of(layout)
        if key not in self._busiest:
            self._busiest[key] = self._by_busiest(layout)
        return SAFETY * (self._busiest[key] + float(self.end_G(layout).min()))

    def sharp(self, layout: TrainingLayout) -> float:
        """Seconds of its step at the least, by the schedule's own order."""
        if layout not in self._sharp:
            table = order_table(layout.schedule, layout.pipeline(self.question.recipe.batch))
            cells = cells_of(self.layers.of(layout), layout, self.question.model.n_layers)
            floor = time_cells(table, *cells, send_s=self.send_s(layout), end_G=self.end_G(layout))
            self._sharp[layout] = max(SAFETY * floor, self.quick(layout))
        return self._sharp[layout]

    def _by_busiest(self, layout: TrainingLayout) -> float:
        """Only what is computed counts where some of the rest may stand beside it."""
        layers, beside = self.layers.of(layout), layout.schedule in PAIRED
        passes_3H, ends_3E = (
            (layers.computed_3H, layers.computed_3E) if beside else (layers.chained_3H, layers.chained_3E)
        )
        stage_3V = by_stage(passes_3H, ends_3E, layout, self.question.model.n_layers)
        return busiest_s(stage_3V, layout, layout.microbatches(self.question.recipe.batch))

    def send_s(self, layout: TrainingLayout) -> float:
        """Least seconds from a pipeline rank to the next: a launch, and a rank's tokens on all ways into a GPU."""
        tokens = layout.own_tokens(self.question.recipe.sequence)
        sent_s = tokens * HIDDEN_BYTES * self.question.model.hidden / self.layers.ports.both_Bps
        return self.question.cluster.hardware.collective_launch_s + sent_s

    def end_G(self, layout: TrainingLayout) -> Float:
        """Least seconds of gradients, optimizer and parameters on each pipeline rank."""
        chunks, stages = chunks_of(layout.schedule, layout.pp, layout.virtual), self.memory.stages_of(layout)
        count, end_G = layout.microbatches(self.question.recipe.batch), np.zeros(chunks.n_ranks)
        for stage, rank in zip(chunks.stage_C, chunks.rank_C, strict=True):
            once_s, often_s = self._reduced_s(layout, stages[stage])
            end_G[rank] += self.optimizer_s(layout, stages[stage]) + once_s + count * often_s
        return end_G

    def optimizer_s(self, layout: TrainingLayout, stage: Stage) -> float:
        """Seconds of the optimizer for a stage."""
        key = (stage, *_held_by(layout))
        if key not in self._optimizer:
            recipe, shard = self.question.recipe, self.memory.shard(layout, stage)
            self._optimizer[key] = recipe.optimizer.seconds(
                shard, self.question.cluster.hardware, recipe.precision, zero=layout.zero
            )
        return self._optimizer[key]

    def _reduced_s(self, layout: TrainingLayout, stage: Stage) -> tuple[float, float]:
        key = (stage, *_held_by(layout))
        if key not in self._reduced:
            shard = self.memory.shard(layout, stage)
            self._reduced[key] = reduced_s(layout, shard, self.question.recipe, self.layers.ports)
        return self._reduced[key]


def _held_by(layout: TrainingLayout) -> tuple[object, ...]:
    """What says which part of a stage each rank holds, and who holds the same."""
    return layout.tp, layout.cp, layout.dp, layout.ep, layout.etp, layout.zero


def busiest_s(stage_3V: Float, layout: TrainingLayout, microbatches: int) -> float:
    """All passes of the busiest pipeline rank, with what comes before its first and what follows its last.

    Parameters
    ----------
    stage_3V
        Forward, input gradients and weight gradients of each virtual stage for one microbatch.
    """
    chunks = chunks_of(layout.schedule, layout.pp, layout.virtual)
    count, whole = microbatches / len(chunks.routes), layout.schedule in WHOLE_BACKWARD
    before_3V = np.cumsum(stage_3V, axis=1) - stage_3V
    best = 0.0
    for own, ahead in _stages_of_ranks(chunks):
        forward, inputs, weights = stage_3V[:, own].sum(axis=1) * count
        fill, back, back_weights = before_3V[:, ahead]
        until_inputs = fill + forward + inputs + back + ((weights + back_weights) if whole else 0.0)
        best = max(best, until_inputs, fill + forward + inputs + weights)
    return float(best)


def cells_of(layers: LayerSeconds, layout: TrainingLayout, n_layers: int) -> tuple[Float, Float, Float]:
    """Computed, chained and travelling seconds of each chunk."""
    stage_C = list(chunks_of(layout.schedule, layout.pp, layout.virtual).stage_C)
    computed_3V = by_stage(layers.computed_3H, layers.computed_3E, layout, n_layers)
    chained_3V = by_stage(layers.chained_3H, layers.chained_3E, layout, n_layers)
    travels_2V = by_stage(layers.travels_2H, np.zeros((2, 2)), layout, n_layers)
    return computed_3V[:, stage_C], chained_3V[:, stage_C], travels_2V[:, stage_C]


def by_stage(seconds_XH: Float, ends_XE: Float, layout: TrainingLayout, n_layers: int) -> Float:
    """Sums over each virtual stage [X, V], embedding with the first and LM head with the last."""
    stages = layout.pp * layout.virtual
    cut = np.array(layout.cut or dealt(n_layers, stages))
    first_V = np.searchsorted(cut, np.arange(stages))
    total_XV = np.add.reduceat(seconds_XH, first_V, axis=1)
    total_XV[:, 0] += ends_XE[:, 0]
    total_XV[:, -1] += ends_XE[:, 1]
    return total_XV


def passes_of(layout: TrainingLayout) -> tuple[object, ...]:
    """What the passes of a step depend on: all but ZeRO."""
    return (
        layout.tp,
        layout.cp,
        layout.dp,
        layout.pp,
        layout.virtual,
        layout.ep,
        layout.etp,
        layout.schedule,
        layout.microbatch,
        layout.recompute,
        layout.dispatch,
        layout.cut,
    )


@lru_cache(maxsize=256)
def _stages_of_ranks(chunks: Chunks) -> tuple[tuple[list[int], int], ...]:
    """Of each pipeline rank: the stages it has, and the first of them, before which all others stand."""
    found: dict[int, list[int]] = {}
    for stage, rank in zip(chunks.stage_C, chunks.rank_C, strict=True):
        found.setdefault(rank, []).append(stage)
    return tuple((stages, min(stages)) for stages in found.values())
