"""A cut of layers into pipeline stages of a layout's own: by what its layers take and hold, under its memory.

The even cut gives each stage as many layers. Dense layers, the LM head and layers whose experts are chosen unevenly
take another time than most, and the first ranks of a pipeline keep more microbatches than the last.

Axes: H hidden layer, R pipeline rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from moecast.errors import MoecastError
from moecast.placement.layouts.stages import StageProblem, by_cp_sat, by_dynamic_programming
from moecast.placement.layouts.training.orders import chunks_of, in_flight
from moecast.placement.layouts.training.space import dealt
from moecast.placement.layouts.training.step_floor import PAIRED
from moecast.sim.memory import usable_bytes

if TYPE_CHECKING:
    from moecast.placement.layouts.training.fitting import TrainingMemory
    from moecast.placement.layouts.training.layer_times import LayerTimes
    from moecast.placement.layouts.training.layout import TrainingLayout
    from moecast.placement.layouts.training.question import TrainingQuestion

WORK = 8.0
"""Limit on CP-SAT's deterministic time: about seconds."""


def own_cut(
    question: TrainingQuestion, layout: TrainingLayout, times: LayerTimes, memory: TrainingMemory
) -> TrainingLayout | None:
    """The layout with the cut whose slowest rank is fastest; None where that is the cut it has, or none is found."""
    if layout.pp == 1:
        return None
    problem = stage_problem(question, layout, times, memory)
    try:
        alone = all(len(stages) == 1 for stages in problem.ranks)
        cut = by_dynamic_programming(problem) if alone else by_cp_sat(problem, work=WORK, proved=False)
    except MoecastError:  # none fits, or none was found
        return None
    had = layout.cut or dealt(question.model.n_layers, layout.pp * layout.virtual)
    if problem.slowest_s(cut) >= problem.slowest_s(had) and problem.fits(had):
        return None
    again = replace(layout, cut=cut)
    usable = usable_bytes(question.cluster.hardware, question.memory_fraction)
    return again if memory.total(again) <= usable else None


def stage_problem(
    question: TrainingQuestion, layout: TrainingLayout, times: LayerTimes, memory: TrainingMemory
) -> StageProblem:
    """What is to be dealt: all passes of each layer, and what it holds of each rank."""
    model, chunks = question.model, chunks_of(layout.schedule, layout.pp, layout.virtual)
    beside = layout.schedule in PAIRED
    layers = times.of(layout, beside=beside)
    seconds_H = layers.chained_3H.sum(axis=0)
    if beside:  # what is sent stands beside what is computed
        seconds_H = np.maximum(layers.computed_3H.sum(axis=0), layers.travels_2H.sum(axis=0))
    stages_R = tuple(
        tuple(stage for stage, there in zip(chunks.stage_C, chunks.rank_C, strict=True) if there == rank)
        for rank in range(chunks.n_ranks)
    )
    flying = in_flight(layout.schedule, layout.pipeline(question.recipe.batch))
    alone = [memory.alone(layer) for layer in range(model.n_layers)]
    held_H = [sum(memory.held(layout, stage).values()) for stage in alone]
    passing = [memory.passing(layout, stage) for stage in alone]
    ends = [(alone[0][0], True, False), (alone[-1][0], False, True)]
    first, last = (sum(memory.held(layout, stage).values()) for stage in ends)
    logits = round(memory.passing(layout, ends[1]).logits)
    beside_bytes = max(len(stages) for stages in stages_R) * max(round(one.again + one.buffers) for one in passing)
    usable = usable_bytes(question.cluster.hardware, question.memory_fraction)
    first_s, last_s = layers.chained_3E.sum(axis=0)
    return StageProblem(
        seconds_H=seconds_H.tolist(),
        bytes_H=held_H,
        stages=layout.pp * layout.virtual,
        usable_bytes=max(usable - beside_bytes, 0),
        first_s=float(first_s),
        last_s=float(last_s),
        first_bytes=first - held_H[0],
        last_bytes=last - held_H[-1] + logits,
        kept_bytes_H=[round(one.kept) for one in passing],
        in_flight_R=[count / len(stages) for count, stages in zip(flying, stages_R, strict=True)],
        stages_R=stages_R,
        wanted_H=[layer in model.moe_layer_ids for layer in range(model.n_layers)],
    )
