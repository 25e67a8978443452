"""What training layouts score: the schedule's own order over layers that a rung has timed, or the whole step by a rung.

A score orders layouts and never excludes one. `TrainingScores.guess` is the busiest rank's work with what is sent by
its bytes over the ports of a GPU; `quick` the recursion of `pipeline_floor` with times of layers in the place of lower
bounds, and gradients and parameters by their bytes; `whole` the step of `moecast train`.

Axes: H hidden layer, V virtual stage, G pipeline rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.layouts.mappings import CONSECUTIVE, near_ranks
from moecast.placement.layouts.training.layer_times import LayerTimes
from moecast.placement.layouts.training.orders import chunks_of, order_table
from moecast.placement.layouts.training.pipeline_floor import time_cells
from moecast.placement.layouts.training.step_floor import (
    PAIRED,
    TrainingFloors,
    busiest_s,
    by_stage,
    cells_of,
    passes_of,
)
from moecast.sim.overlap import SLOWDOWN
from moecast.sim.schedules.pipeline.sends import HIDDEN_BYTES
from moecast.sim.training import draw_microbatches, overlaps, reductions, simulate_training, time_training

if TYPE_CHECKING:
    from moecast.placement.layouts.training.fitting import Stage
    from moecast.placement.layouts.training.layer_floor import LayerFloors
    from moecast.placement.layouts.training.layout import TrainingLayout
    from moecast.placement.layouts.training.question import TrainingQuestion
    from moecast.sim.training import TrainingPrediction
    from moecast.topology import Cluster

Float = npt.NDArray[np.float64]


class TrainingScores:
    """Scores of the layouts of one question.

    Parameters
    ----------
    floors
        Their lower bounds, which know what layers share.
    times
        Of their layers; None: timed by ``bound``, one layer of each kind.
    """

    def __init__(self, question: TrainingQuestion, floors: TrainingFloors, times: LayerTimes | None = None) -> None:
        self.question, self.floors = question, floors
        self.times = LayerTimes(question.one_layer(), floors.layers) if times is None else times
        self._guess: dict[tuple[object, ...], float] = {}
        self._quick: dict[TrainingLayout, float] = {}
        self._sent: dict[tuple[object, ...], tuple[float, float]] = {}

    def guess(self, layout: TrainingLayout) -> float:
        """Seconds of a step, roughly, in some microseconds."""
        key = passes_of(layout)
        if key not in self._guess:
            self._guess[key] = self._guessed_s(layout)
        return self._guess[key] + float(self._end_G(layout).max())

    def _guessed_s(self, layout: TrainingLayout) -> float:
        model, layers = self.question.model, self.floors.layers.of(layout)
        sent_s = travel_s(self.question, layout, self.floors.layers)
        passes_3H, ends_3E, moe = layers.chained_3H.copy(), layers.chained_3E, list(model.moe_layer_ids)
        again = 1 + (layout.recompute == "full")
        if layout.schedule in PAIRED:  # all that is sent, or all that is computed
            passes_3H, ends_3E = layers.computed_3H.copy(), layers.computed_3E
            computed_H = passes_3H.sum(axis=0)[moe]
            passes_3H[0, moe] += np.maximum(SLOWDOWN * (1 + again) * sent_s - computed_H, 0.0)
        else:
            passes_3H[0, moe] += sent_s
            passes_3H[1, moe] += again * sent_s
        stage_3V = by_stage(passes_3H, ends_3E, layout, model.n_layers)
        return busiest_s(stage_3V, layout, layout.microbatches(self.question.recipe.batch))

    def quick(self, layout: TrainingLayout) -> float:
        """Seconds of a step, about."""
        if layout not in self._quick:
            self._quick[layout] = self._seconds(layout, self.floors.send_s(layout))
        return self._quick[layout]

    def mapped(self, layout: TrainingLayout) -> float:
        """The same with what is sent between pipeline ranks on the ways that it takes: for other mappings of ranks."""
        ports, far = self.floors.layers.ports, leaves_domain(layout, self.question.cluster)
        tokens = layout.own_tokens(self.question.recipe.sequence)
        sent_s = tokens * HIDDEN_BYTES * self.question.model.hidden / (ports.far_Bps if far else ports.near_Bps)
        return self._seconds(layout, self.question.cluster.hardware.collective_launch_s + sent_s)

    def _seconds(self, layout: TrainingLayout, send_s: float) -> float:
        layers = self.times.of(layout, beside=layout.schedule in PAIRED)
        cells = cells_of(layers, layout, self.question.model.n_layers)
        table = order_table(layout.schedule, layout.pipeline(self.question.recipe.batch))
        return time_cells(table, *cells, send_s=send_s, end_G=self._end_G(layout))

    def step_s(self, layout: TrainingLayout, *, network: str = "bound") -> float:
        """Seconds of the step of `whole`, without all else that is said of it: in half the time."""
        question, plan = self.question, layout.plan(self.question.model)
        recipe = layout.recipe(question.recipe)
        steps = draw_microbatches(
            question.trace,
            recipe,
            ranks=layout.dp,
            drawn=question.drawn,
            from_phase=question.from_phase,
            seed=question.seed,
        )
        timed = time_training(
            question.cluster,
            question.model,
            plan,
            question.trace,
            recipe,
            schedule=layout.schedule,
            steps=steps,
            network=network,
        )
        return timed.times.step_time_s

    def whole(self, layout: TrainingLayout, *, network: str = "bound") -> TrainingPrediction:
        """All that `moecast train` says of a layout: the whole step, laid out and timed by a rung."""
        question = self.question
        return simulate_training(
            question.cluster,
            question.model,
            layout.plan(question.model),
            question.trace,
            layout.recipe(question.recipe),
            schedule=layout.schedule,
            drawn=question.drawn,
            from_phase=question.from_phase,
            network=network,
            memory_fraction=question.memory_fraction,
            seed=question.seed,
        )

    def _end_G(self, layout: TrainingLayout) -> Float:
        """Optimizer, gradients and parameters on each pipeline rank, by what a rank sends of them over its ports."""
        chunks, stages = chunks_of(layout.schedule, layout.pp, layout.virtual), self.floors.memory.stages_of(layout)
        count, end_G = layout.microbatches(self.question.recipe.batch), np.zeros(chunks.n_ranks)
        for stage, rank in zip(chunks.stage_C, chunks.rank_C, strict=True):
            once_s, often_s = self._reduced_s(layout, stages[stage])
            end_G[rank] += self.floors.optimizer_s(layout, stages[stage]) + once_s + count * often_s
        return end_G

    def _reduced_s(self, layout: TrainingLayout, stage: Stage) -> tuple[float, float]:
        """Once a step, and for each microbatch."""
        key = (stage, layout.tp, layout.cp, layout.dp, layout.ep, layout.etp, layout.zero, layout.mapping)
        if key not in self._sent:
            shard, ports, found = self.floors.memory.shard(layout, stage), self.floors.layers.ports, [0.0, 0.0]
            for part in reductions(shard, self.question.recipe.precision, zero=layout.zero):
                if overlaps(part, self.question.recipe):  # hidden, as scores take it
                    continue
                ranks, stride = layout.group_of(part.group)
                near = self._near(layout, ranks, stride)
                Bps = ports.near_Bps if ranks <= near else ports.far_Bps * near
                found[part.per_microbatch] += part.sent_bytes(ranks) / Bps
            self._sent[key] = found[0], found[1]
        return self._sent[key]

    def _near(self, layout: TrainingLayout, ranks: int, stride: int) -> int:
        """Ranks of a group in each domain, at the most."""
        if layout.mapping == CONSECUTIVE:
            return max(self.floors.layers.ports.domain_gpus // stride, 1)
        return near_ranks(layout.mapping, self.question.cluster, ranks, stride)


def leaves_domain(layout: TrainingLayout, cluster: Cluster) -> bool:
    """Whether what the first pipeline rank gives to the next leaves its domain."""
    if layout.pp == 1:
        return False
    gpus, domain_G = layout.gpu_of_rank, cluster.domain_of_gpu_G
    return bool(domain_G[gpus[0]] != domain_G[gpus[layout.ranks_of_stage]])


def travel_s(question: TrainingQuestion, layout: TrainingLayout, floors: LayerFloors) -> float:
    """Dispatch and combine of a layer, about: copies of even routing over the ports of a GPU, the slower counts."""
    if layout.ep == 1:
        return 0.0
    model, members = question.model, layout.ep
    ports = floors.ports
    domains = max(layout.ep * layout.etp / max(ports.domain_gpus, 1), 1.0)
    tokens = layout.microbatch * question.recipe.sequence / (layout.tp * layout.cp)
    if layout.dispatch == "nccl":
        near, far = model.choices * (1 - 1 / members), model.choices * (1 - 1 / domains)
    else:
        near = members * (1 - (1 - 1 / members) ** model.choices)
        far = (domains - 1) * (1 - (1 - 1 / domains) ** model.choices)
    row_bytes = (2 + 2) * model.hidden
    return float(tokens * row_bytes * max(near / ports.near_Bps, far / ports.far_Bps))
