"""A forward pass through a pipeline, as engines serve: microbatches go from stage to stage, one behind the other.

Axes: R rank of a stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.collectives.links import link_capacity, link_names
from moecast.sim.forward import ForwardPass
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import Compute, StepProgram, Task
from moecast.sim.schedules.layers import layer_in_sequence
from moecast.sim.schedules.pipeline import Pipeline, PipelineOrder, find_pipeline_schedule, make_order
from moecast.sim.schedules.pipeline.cells import Beside
from moecast.sim.schedules.pipeline.lower import lower, on_narrowest
from moecast.sim.schedules.pipeline.sends import HiddenSends
from moecast.sim.sites import Sites
from moecast.sim.trace_layers import trace_of_layers

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan
    from moecast.sim.step import Step
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingStage:
    """The layers of one pipeline stage and the microbatches that go through them.

    Parameters
    ----------
    ranks_R
        Its ranks in the job.
    passes
        Of each microbatch, over the stage's layers alone.
    first, last
        Whether it has the embedding; the LM head.
    """

    ranks_R: Int32
    passes: tuple[ForwardPass, ...]
    first: bool
    last: bool

    @property
    def layers(self) -> range:
        """Its hidden layers, counted from 0."""
        return range(self.passes[0].model.n_layers)

    @property
    def hidden(self) -> int:
        """Width of the model."""
        return self.passes[0].model.hidden

    def step(self, microbatch: int) -> ForwardPass:
        """The pass of a microbatch."""
        return self.passes[microbatch]

    def forward(self, microbatch: int, layer: int, *, beside: Beside = "nothing") -> Iterator[Task]:
        """Forward through one layer; no forward runs beside another here."""
        assert beside == "nothing"
        step, ids = self.passes[microbatch], self.passes[microbatch].model.moe_layer_ids
        if self.first and layer == 0:
            yield step.embedding()
        yield from layer_in_sequence(step, layer, ids.index(layer) if layer in ids else None)
        if self.last and layer == self.layers[-1]:
            yield from step.logits()

    def backward(self, *_: object, **__: object) -> Iterator[Task]:
        """No gradients: the order of passes has forwards only."""
        yield from ()

    def weights(self, *_: object, **__: object) -> Iterator[Compute]:
        """No gradients: the order of passes has forwards only."""
        yield from ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingPipeline:
    """A plan with pipeline stages on a cluster; see `program`."""

    cluster: Cluster
    model: ModelShape
    plan: Plan
    phase: str
    seed: int
    order: PipelineOrder
    placed: tuple[PlacedModel, ...]

    @classmethod
    def of(cls, cluster: Cluster, model: ModelShape, plan: Plan, *, phase: str, seed: int = 0) -> ServingPipeline:
        """Lay a plan's stages out.

        Raises
        ------
        MoecastError
            Layers alone are asked for and no whole step, another schedule than the sequential one,
            chunks, or a stage without an MoE layer.
        """
        if not model.is_whole:
            raise MoecastError("a pipeline runs whole models", field="pp", value=plan.pp)
        if plan.schedule != "sequential":
            raise MoecastError(
                "stages of a pipeline go through their layers in sequence", field="schedule", value=plan.schedule
            )
        if plan.virtual > 1:
            raise MoecastError("serving has one chunk a stage", field="vpp", value=plan.virtual)
        sizes = Pipeline(pp=plan.pp, virtual=1, microbatches=plan.microbatches)
        try:
            placed = tuple(
                PlacedModel.of(
                    cluster,
                    model.part(plan.layout.layers_of_stage(stage, model.n_layers)),
                    plan.of_stage(stage, model).with_(microbatches=1),
                    phase=phase,
                    seed=seed,
                    narrow=False,
                )
                for stage in range(plan.pp)
            )
        except ValueError as error:
            raise MoecastError(str(error)) from error
        order = make_order(find_pipeline_schedule("forward"), sizes)
        return cls(cluster=cluster, model=model, plan=plan, phase=phase, seed=seed, order=order, placed=placed)

    def on(self, cluster: Cluster) -> ServingPipeline:
        """The same plan on another cluster."""
        return ServingPipeline.of(cluster, self.model, self.plan, phase=self.phase, seed=self.seed)

    def program(self, trace: RoutingTrace, step: Step) -> StepProgram:
        """Make the program of a step, each rank's tokens cut into the plan's microbatches."""
        parts = step.split(self.plan.microbatches)
        stages = []
        for stage, placed in enumerate(self.placed):
            own = set(self.plan.layout.layers_of_stage(stage, self.model.n_layers))
            rows = [row for row, layer in enumerate(self.model.moe_layer_ids) if layer in own]
            routed = trace_of_layers(trace, rows)
            stages.append(
                ServingStage(
                    ranks_R=self.plan.layout.ranks_of_virtual_stage(stage),
                    passes=tuple(ForwardPass.of(placed, routed, part) for part in parts),
                    first=stage == 0,
                    last=stage == self.plan.pp - 1,
                )
            )
        sites = Sites.of(self.cluster, self.plan, seed=self.seed)
        capacity_J = link_capacity(sites)
        tasks, narrowest_J = on_narrowest(lower(self.order, stages, HiddenSends(sites, stages)), capacity_J)
        return StepProgram(
            tasks=tuple(tasks),
            n_ranks=sites.n_ranks,
            capacity_J=capacity_J,
            link_names_J=link_names(sites),
            narrowest_J=narrowest_J,
        )


def first_stage(plan: Plan) -> Plan:
    """A plan of all layers on the first pipeline stage's ranks: its routing is counted, which no stage changes."""
    ranks = plan.layout.ranks_of_virtual_stage(0)
    gpus = tuple(plan.gpu_of_rank[rank] for rank in ranks)
    return replace(plan, pp=1, virtual=1, dp=0, folded=False, microbatches=1, stage_of_layer=None, gpu_of_rank=gpus)
