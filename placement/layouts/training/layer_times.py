"""What a layer's passes take by a rung: each alone, on the ranks of one EP group, by the tasks of a training step.

For scores only: they order layouts and exclude none. Ranks that share tokens or experts stand together, so one group of
them says what a layer takes; others of its pipeline stage are alike but for their routing.

Axes: H hidden layer, G rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.layouts.changes import Change
from moecast.placement.layouts.training.fitting import kinds_of_layers
from moecast.placement.layouts.training.layer_floor import LayerFloors, LayerSeconds
from moecast.sim.network import find_rung
from moecast.sim.overlap import SLOWDOWN
from moecast.sim.program import COMPUTE, Compute, Exchange, Task
from moecast.sim.schedules.lay import places_behind
from moecast.sim.schedules.pipeline.lower import OVERLAPPED
from moecast.sim.trace_layers import trace_of_layers
from moecast.sim.training import RECOMPUTES, draw_microbatches, stage_work

if TYPE_CHECKING:
    from moecast.placement.layouts.training.layout import TrainingLayout
    from moecast.placement.layouts.training.question import TrainingQuestion
    from moecast.sim.model import ModelShape
    from moecast.sim.network import Rung
    from moecast.sim.training import TrainingPass
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """Seconds of one layer's forward pass, input gradients and weight gradients.

    Parameters
    ----------
    computed_3, chained_3
        What a rank computes; all one after another.
    travels_2
        What dispatch and combine add to the first two.
    """

    computed_3: tuple[float, float, float]
    chained_3: tuple[float, float, float]
    travels_2: tuple[float, float]


class LayerTimes:
    """Times of the layers of layouts, each cut of them timed once.

    Parameters
    ----------
    every_layer
        Time each MoE layer by its own routing; else one of each kind stands for all.
    network
        The rung.
    change
        What is other than it is taken to be, of tasks and links.
    """

    def __init__(
        self,
        question: TrainingQuestion,
        floors: LayerFloors,
        *,
        every_layer: bool = False,
        network: str = "bound",
        change: Change | None = None,
    ) -> None:
        self.question, self.floors, self.every_layer = question, floors, every_layer
        self.alone = _Alone(find_rung(network), question.cluster, Change() if change is None else change)
        self._passes: dict[tuple[object, ...], tuple[TrainingPass, int]] = {}
        self._known: dict[tuple[object, ...], LayerSeconds] = {}
        model = question.model
        moe = {layer: i for i, layer in enumerate(model.moe_layer_ids)}
        own = question.trace.meta.layers > 1 and every_layer
        kinds = kinds_of_layers(model)
        self._kind_H = [(kind, moe.get(layer) if own else None) for layer, kind in enumerate(kinds)]

    def of(self, layout: TrainingLayout, *, beside: bool) -> LayerSeconds:
        """Those of a layout; `beside`: of work that runs beside what another microbatch sends."""
        cut = layout.tp, layout.cp, layout.ep, layout.etp, layout.microbatch, layout.one_group().mapping
        key = (*cut, layout.recompute, layout.dispatch, beside)
        if key not in self._known:
            self._known[key] = self._layers(layout, cut, beside)
        return self._known[key]

    def _layers(self, layout: TrainingLayout, cut: tuple[object, ...], beside: bool) -> LayerSeconds:
        ends = self.floors.of(layout)  # which nobody has to wait for: exact
        shown = {kind: layer for layer, kind in reversed(list(enumerate(self._kind_H)))}
        found: dict[object, LayerTime] = {}
        travels: dict[object, Float] = {}
        for kind, layer in shown.items():
            step, place = self._pass(layout, cut, layer)
            work = replace(step, recompute=RECOMPUTES[layout.recompute])
            alone = self.alone.timed(work, place)
            found[kind] = self.alone.timed(work.beside(), place) if beside else alone
            travels[kind] = SLOWDOWN * beside * np.array(alone.travels_2)
        return LayerSeconds(
            computed_3H=np.array([found[kind].computed_3 for kind in self._kind_H]).T,
            chained_3H=np.array([found[kind].chained_3 for kind in self._kind_H]).T,
            computed_3E=ends.computed_3E,
            chained_3E=ends.chained_3E,
            travels_2H=np.array([travels[kind] for kind in self._kind_H]).T,
        )

    def _pass(self, layout: TrainingLayout, cut: tuple[object, ...], layer: int) -> tuple[TrainingPass, int]:
        """One microbatch of a few layers, on as few ranks as share tokens or experts; and which of them is asked."""
        key = (*cut, layout.dispatch, self._kind_H[layer])
        if key not in self._passes:
            question = self.question
            one = layout.one_group()
            model, trace, place = self._with_experts(layer)
            recipe = replace(one.recipe(question.recipe), batch=one.dp * one.microbatch)
            steps = draw_microbatches(
                trace, recipe, ranks=one.dp, drawn=1, from_phase=question.from_phase, seed=question.seed
            )
            work = stage_work(
                question.cluster, model, one.plan(model), recipe, stage=0, rank=0, trace=trace, steps=steps
            )
            self._passes[key] = work.passes[0], place
        return self._passes[key]

    def _with_experts(self, layer: int) -> tuple[ModelShape, RoutingTrace, int]:
        """A layer, beside an MoE layer where it is none, as no stage is without; its routing; and its place."""
        model, trace = self.question.model, self.question.trace
        moe = layer in model.moe_layer_ids
        ids = (layer,) if moe else tuple(sorted((layer, model.moe_layer_ids[0])))
        row = model.moe_layer_ids.index(layer) if moe and trace.meta.layers > 1 else 0
        return model.part(ids), trace_of_layers(trace, [row]), ids.index(layer)


@dataclass(frozen=True, slots=True)
class _Alone:
    """Passes of one layer by themselves, timed by a rung, with something changed."""

    rung: Rung
    cluster: Cluster
    change: Change

    def timed(self, work: TrainingPass, layer: int) -> LayerTime:
        """Time the passes of one of a microbatch's layers."""
        passes = [
            [self.change.task(task) for task in tasks]
            for tasks in (work.forward(layer), work.backward(layer, weights=False), work.weights(layer))
        ]
        computed = [_computed_s(tasks) for tasks in passes]
        chained = [self._chained_s(work, tasks) for tasks in passes]
        stays = [self._chained_s(work, [task for task in tasks if not _travels(task)]) for tasks in passes[:2]]
        return LayerTime(
            computed_3=(computed[0], computed[1], computed[2]),
            chained_3=(chained[0], chained[1], chained[2]),
            travels_2=(max(chained[0] - stays[0], 0.0), max(chained[1] - stays[1], 0.0)),
        )

    def _chained_s(self, work: TrainingPass, tasks: Sequence[Task]) -> float:
        """All tasks of a pass one after another, as a pipeline's cell lays them."""
        if not any(isinstance(task, Exchange) for task in tasks):
            return _computed_s(tasks)
        program = self.change.links(work.step.program(_laid(tasks)), self.cluster)
        return float(self.rung.run(program).step_time_s)


def _travels(task: Task) -> bool:
    return isinstance(task, Exchange) and task.kind in OVERLAPPED


def _computed_s(tasks: Sequence[Task]) -> float:
    return float(sum((task.seconds_R for task in tasks if isinstance(task, Compute)), np.zeros(1)).max())


def _laid(tasks: Iterable[Task]) -> list[Task]:
    laid: list[Task] = []
    for task in tasks:
        after: tuple[int, ...] = (len(laid) - 1,) if laid else ()
        stream = task.stream
        if task.behind is not None:
            after = places_behind(task, len(laid))
        elif stream is not None:
            stream = COMPUTE
        laid.append(replace(task, stream=stream, after=after, behind=None))
    return laid
