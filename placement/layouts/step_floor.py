"""A lower bound on the step of each of many layouts, proved to be at most what the rung ``bound`` says of it.

It holds for every placement of the experts in the layout's slots, so that it certifies as well as prunes. What it
stands on is pooled over an EP group: rows, experts with any, what may stay near (`moecast.placement.layouts.
pooled_loads`). How work adds up to a layer is in `exchange_floor`; layers add up to a step like this:

- *On one stream*: one after the other, by the mean rank or by choices, whichever gives more.
- *In a pipeline*: a stage runs its microbatches one by one; the first has come through all stages before it, and the
  last has all behind it to go. The stage for which that is most counts.
- *Beside each other* (schedules ``shared-beside`` and ``two-batch``): all that a rank computes stands on one stream,
  and what one half does is a chain; the larger of both.

Axes: B batch, H hidden layer, L MoE layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.placement.layouts.exchange_floor import LayerFloor, layer_floor
from moecast.placement.layouts.fixed_work import FixedWork, fixed_work
from moecast.placement.layouts.links_of_groups import LinksOfGroup
from moecast.placement.layouts.pooled_loads import LoadsOfSteps
from moecast.placement.layouts.serving_layout import SEQUENTIAL, ServingLayout, way_of

if TYPE_CHECKING:
    from moecast.placement.layouts.serving_question import ServingQuestion

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

SAFETY = 1 - 1e-9  # sums of thousands of stages round
HALVES = {"two-batch": 2}
"""Schedules that cut a step's tokens, and into how many parts."""


class StepFloors:
    """Lower bounds for the layouts of one question and phase.

    Parameters
    ----------
    question, phase
        Whose steps.
    """

    def __init__(self, question: ServingQuestion, phase: str) -> None:
        self._question, self._phase = question, phase
        self._loads = LoadsOfSteps(question, phase)
        self._fixed: dict[tuple[object, ...], _FixedOfBatches] = {}
        self._links: dict[tuple[object, ...], LinksOfGroup] = {}

    def of(self, layouts: Sequence[ServingLayout]) -> Float:
        """Seconds that the step of each layout takes at the least."""
        floor = np.zeros(len(layouts))
        for ranks in by_ranks(layouts):
            for layout, places in ranks:
                floor[places] = self.of_batches(layout, [layouts[place].batch for place in places])
        return floor

    def of_batches(self, layout: ServingLayout, batches: Sequence[int]) -> Float:
        """The same of one layout with some batches."""
        return SAFETY * self._way(replace(layout, batch=layout.microbatches), np.array(batches))

    def _way(self, way: ServingLayout, batch_B: Int) -> Float:
        parts = way.microbatches * HALVES.get(way.schedule, 1)
        each_B = batch_B // parts
        cut = replace(way, microbatches=parts, schedule=SEQUENTIAL)
        loads = self._loads.of(cut, batch_B.tolist())
        layers = layer_floor(self._question, way, loads, each_B * way.dp, self._links_of(way), self._phase)
        step = _Step(
            self._fixed_of(replace(way, microbatches=parts), each_B), layers, self._question.model.moe_layer_ids
        )
        if way.pp > 1:
            launch_s = self._question.cluster.hardware.collective_launch_s
            return step.pipeline(_bounds_of_stages(self._question.model.n_layers, way.pp), way.microbatches, launch_s)
        whole = (0, self._question.model.n_layers)
        if way.schedule == "two-batch":
            return np.maximum(2 * step.computed(*whole), step.chained(*whole))
        if way.schedule == "shared-beside":
            return np.maximum(step.computed(*whole), step.chained(*whole, without_shared=True))
        return step.chained(*whole)

    def _fixed_of(self, way: ServingLayout, each_B: Int) -> FixedWork:
        shares_prompts = way.cp > 1 and self._phase == "prefill"  # alone asks in how many parts, and whether in stages
        parts = (way.pp == 1, way.microbatches) if shares_prompts else ()
        key = (way.tp, way.cp, way.sequence_parallel, way.experts_are_summed, *parts)
        if key not in self._fixed:
            self._fixed[key] = _FixedOfBatches(self._question, way, self._phase)
        return self._fixed[key].of(each_B)

    def _links_of(self, way: ServingLayout) -> LinksOfGroup | None:
        if way.ep == 1 or way.experts_are_summed:
            return None
        key = (way.ranks_of_stage, way.etp, way.dispatch)
        if key not in self._links:
            self._links[key] = LinksOfGroup.of(self._question, way, self._phase)
        return self._links[key]


def by_ranks(layouts: Sequence[ServingLayout]) -> list[list[tuple[ServingLayout, list[int]]]]:
    """Layouts that differ in their batch alone, those of the same ranks together: they share counts of routing.

    Each with where in `layouts` its batches stand.
    """
    ways: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, layout in enumerate(layouts):
        ways[way_of(layout)].append(place)
    ranks: dict[tuple[int, int, int], list[tuple[ServingLayout, list[int]]]] = defaultdict(list)
    for places in ways.values():
        layout = layouts[places[0]]
        ranks[layout.dp, layout.tp, layout.cp].append((layout, places))
    return [ranks[key] for key in sorted(ranks)]


class _FixedOfBatches:
    """Fixed work of one cut for any batches, each priced once."""

    def __init__(self, question: ServingQuestion, way: ServingLayout, phase: str) -> None:
        self._asked = question, way, phase
        self._columns: dict[int, FixedWork] = {}

    def of(self, batch_B: Int) -> FixedWork:
        new_B = np.array([batch for batch in np.unique(batch_B) if int(batch) not in self._columns], np.int64)
        if len(new_B):
            question, way, phase = self._asked
            found = fixed_work(question, way, new_B, phase)
            self._columns |= {int(batch): found.only(i) for i, batch in enumerate(new_B)}
        return FixedWork.beside([self._columns[int(batch)] for batch in batch_B])


@dataclass(frozen=True, slots=True)
class _Step:
    """The layers of a step, or of one microbatch or half of it."""

    fixed: FixedWork
    layers: LayerFloor
    moe_layer_ids: tuple[int, ...]

    def computed(self, first: int, end: int) -> Float:
        """What the mean rank computes in some hidden layers, embedding and LM head with the first and the last."""
        of_layers = self.fixed.compute_H1B[end] - self.fixed.compute_H1B[first]
        return np.asarray(of_layers + self._ends(first, end) + self.layers.expert_LB[self._moe(first, end)].sum(axis=0))

    def chained(self, first: int, end: int, *, without_shared: bool = False) -> Float:
        """What follows one upon the other: computing, setups and what comes in."""
        fixed, moe = self.fixed, self._moe(first, end)
        around_B = fixed.around_H1B[end] - fixed.around_H1B[first]
        shared_B = fixed.shared_H1B[end] - fixed.shared_H1B[first] if without_shared else 0.0
        by_mean_B = (self.layers.expert_LB + self.layers.exchange_LB)[moe].sum(axis=0)
        by_choice_B = self.layers.by_choice_LB[moe].sum(axis=0)
        of_layers = fixed.compute_H1B[end] - fixed.compute_H1B[first] - shared_B
        return np.asarray(of_layers + around_B + self._ends(first, end) + np.maximum(by_mean_B, by_choice_B))

    def pipeline(self, stages: Sequence[tuple[int, int]], microbatches: int, launch_s: float) -> Float:
        """The stage for which its microbatches, what comes before and what comes behind are most."""
        stage_SB = np.stack([self.chained(first, end) for first, end in stages])
        once_B = stage_SB.sum(axis=0) + launch_s * (len(stages) - 1)
        return np.asarray(once_B + (microbatches - 1) * stage_SB.max(axis=0))

    def _moe(self, first: int, end: int) -> slice:
        place = np.searchsorted(self.moe_layer_ids, (first, end))
        return slice(int(place[0]), int(place[1]))

    def _ends(self, first: int, end: int) -> Float:
        n_layers = len(self.fixed.compute_H1B) - 1
        return np.asarray((first == 0) * self.fixed.first_B + (end == n_layers) * self.fixed.last_B)


def _bounds_of_stages(n_layers: int, pp: int) -> list[tuple[int, int]]:
    """First hidden layer of each stage, and the one behind its last: as many to each, the first ones one more."""
    each, more = divmod(n_layers, pp)
    ends = np.cumsum([each + (stage < more) for stage in range(pp)]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def step_floors(question: ServingQuestion, layouts: Iterable[ServingLayout], *, phase: str = "decode") -> Float:
    """As `StepFloors.of`, of layouts asked once."""
    return StepFloors(question, phase).of(list(layouts))
