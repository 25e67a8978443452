"""The virtual stages of a pipeline: which layers each has, on which ranks, and the work of its microbatches.

Axes: V virtual stage, R rank of a stage, L MoE layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.forward import ForwardPass
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import Compute, Task
from moecast.sim.schedules.fsmoe import FsMoe
from moecast.sim.schedules.fsmoe_training import degree_of
from moecast.sim.schedules.pipeline.cells import Beside
from moecast.sim.sites import Sites
from moecast.sim.trace_layers import trace_of_layers
from moecast.sim.training.recipe import Recipe
from moecast.sim.training.shard import Shard
from moecast.sim.training.work import TrainingPass
from moecast.traces import RoutingTrace

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan
    from moecast.sim.step import Step
    from moecast.topology import Cluster

Int32 = npt.NDArray[np.int32]
AnyTask = TypeVar("AnyTask", bound=Task)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageWork:
    """One virtual stage of a training job.

    Parameters
    ----------
    ranks_R
        Its ranks in the job.
    passes
        Of its microbatches; microbatch m is the (m mod their number)-th.
    shard
        What each of its ranks holds.
    layer_ids
        Its hidden layers, as the model counts them; the methods below count them from 0.
    """

    ranks_R: Int32
    passes: tuple[TrainingPass, ...]
    shard: Shard
    layer_ids: tuple[int, ...]
    _made: dict[tuple[str, int, int, Beside], Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def layers(self) -> range:
        """Its hidden layers, counted from 0."""
        return range(len(self.layer_ids))

    @property
    def hidden(self) -> int:
        """Width of the model."""
        return self.shard.model.hidden

    @property
    def sites(self) -> Sites:
        """Where its ranks stand, counted from 0."""
        return self.passes[0].step.placed.sites

    def step(self, microbatch: int) -> ForwardPass:
        """The forward pass of a microbatch: its tokens and traffic."""
        return self.passes[microbatch % len(self.passes)].step

    def optimizer_seconds(self, recipe: Recipe) -> float:
        """Seconds of the optimizer's step on each rank."""
        hardware = self.sites.cluster.hardware
        return recipe.optimizer.seconds(self.shard, hardware, recipe.precision, zero=recipe.zero)

    def forward(self, microbatch: int, layer: int, *, beside: Beside = "nothing") -> tuple[Task, ...]:
        """Forward through one layer; the embedding comes before the first, LM head and loss behind the last.

        `beside` as of the other two: what the microbatch's work runs beside.
        """
        return self._tasks(self._forward, microbatch, layer, beside)

    def backward(self, microbatch: int, layer: int, *, weights: bool, beside: Beside = "nothing") -> tuple[Task, ...]:
        """Input gradients of one layer, with `weights` its weight gradients too."""
        return self._tasks(self._backward if weights else self._inputs, microbatch, layer, beside)

    def weights(self, microbatch: int, layer: int, *, beside: Beside = "nothing") -> tuple[Compute, ...]:
        """Weight gradients of one layer."""
        return self._tasks(self._weights, microbatch, layer, beside)

    def _tasks(
        self, make: Callable[[TrainingPass, int], Iterator[AnyTask]], microbatch: int, layer: int, beside: Beside
    ) -> tuple[AnyTask, ...]:
        """Make the tasks of one layer, once for all microbatches of a pass."""
        key = make.__name__, microbatch % len(self.passes), layer, beside
        if key not in self._made:
            self._made[key] = tuple(make(self._pass(microbatch, beside), layer))
        made: tuple[AnyTask, ...] = self._made[key]
        return made

    def _forward(self, work: TrainingPass, layer: int) -> Iterator[Task]:
        if self.shard.first and layer == 0:
            yield from work.embedding()
        yield from work.forward(layer)
        if self.shard.last and layer == self.layers[-1]:
            yield from work.head()

    def _inputs(self, work: TrainingPass, layer: int) -> Iterator[Task]:
        if self.shard.last and layer == self.layers[-1]:
            yield from work.head_gradient(weights=False)
        yield from work.backward(layer, weights=False)

    def _backward(self, work: TrainingPass, layer: int) -> Iterator[Task]:
        if self.shard.last and layer == self.layers[-1]:
            yield from work.head_gradient(weights=True)
        yield from work.backward(layer, weights=True)
        if self.shard.first and layer == 0:
            yield from work.embedding_gradient()

    def _weights(self, work: TrainingPass, layer: int) -> Iterator[Compute]:
        if self.shard.last and layer == self.layers[-1]:
            yield from work.head_weights()
        yield from work.weights(layer)
        if self.shard.first and layer == 0:
            yield from work.embedding_gradient()

    def _pass(self, microbatch: int, beside: Beside) -> TrainingPass:
        work = self.passes[microbatch % len(self.passes)]
        if beside == "collectives":
            return work.with_fewer_sms()
        return work.beside() if beside == "microbatch" else work


def stage_work(
    cluster: Cluster,
    model: ModelShape,
    plan: Plan,
    recipe: Recipe,
    *,
    stage: int,
    rank: int,
    trace: RoutingTrace,
    steps: Sequence[Step],
    sites: Sites | None = None,
) -> StageWork:
    """Make the work of one virtual stage of a plan, on the ranks of a pipeline rank.

    Parameters
    ----------
    stage, rank
        Which piece of the model, and who has it: not always the layout's own, since some schedules
        hold two copies.
    trace
        The routing of the model's MoE layers; of one layer it stands for all of them.
    steps
        The microbatches, each over all data-parallel ranks (phase ``prefill``); fewer than there
        are take turns.
    sites
        Where the pipeline rank's ranks stand, where another of its chunks has been laid out.

    Raises
    ------
    MoecastError, ValueError
        A stage without an MoE layer, or what `PlacedModel.of` and its `forward` refuse.
    """
    if not steps:
        raise MoecastError("a step has at least one microbatch", field="steps")
    layout = plan.layout
    layer_ids = layout.layers_of_stage(stage, model.n_layers)
    ranks_R, gpus = layout.ranks_of_virtual_stage(rank), plan.gpu_of_rank
    own = plan.of_stage(stage, model).with_(gpu_of_rank=tuple(gpus[member] for member in ranks_R))
    part = recipe.precision.of(model).part(layer_ids)
    placed = PlacedModel.of(cluster, part, own, phase="prefill", narrow=False, sites=sites)
    rows = [model.moe_layer_ids.index(layer) for layer in layer_ids if layer in model.moe_layer_ids]
    return StageWork(
        ranks_R=ranks_R,
        passes=tuple(_training_pass(placed, recipe, trace, rows, step) for step in steps),
        shard=shard_of(model, plan, stage),
        layer_ids=layer_ids,
    )


def shard_of(model: ModelShape, plan: Plan, stage: int) -> Shard:
    """What each rank of a virtual stage holds; ranks that hold the same are those of data and context parallelism."""
    layout = plan.layout
    return Shard(
        model=model,
        layer_ids=layout.layers_of_stage(stage, model.n_layers),
        first=stage == 0,
        last=stage == layout.stages - 1,
        tp=layout.tp,
        ep=layout.ep,
        etp=layout.etp,
        dense_ranks=layout.dp * layout.cp,
        expert_ranks=layout.groups,
    )


def _training_pass(
    placed: PlacedModel, recipe: Recipe, trace: RoutingTrace, rows: list[int], step: Step
) -> TrainingPass:
    """A microbatch, with its chunks where the recipe asks for some."""
    whole = _one_pass(placed, recipe, trace, rows, step)
    if (degree := degree_of(recipe.moe_schedule)) == 1 or not rows:
        return whole
    if (why := FsMoe(degree=degree).supports(whole.step)) is not None:
        raise MoecastError(why, field="moe_schedule", value=recipe.moe_schedule)
    parts = step.split(degree)
    beside = placed.beside_compute()
    return replace(whole, chunks=tuple(_one_pass(beside, recipe, trace, rows, part) for part in parts))


def _one_pass(placed: PlacedModel, recipe: Recipe, trace: RoutingTrace, rows: list[int], step: Step) -> TrainingPass:
    if trace.meta.layers == 1 and rows not in ([], [0]):  # it stands for all of them
        forward = _alike(placed, trace, step)
    else:
        forward = ForwardPass.of(placed, trace_of_layers(trace, rows), step)
    return TrainingPass(
        step=forward,
        precision=recipe.precision,
        recompute=recipe.recompute,
        host=recipe.host,
        slower=recipe.slower,
    )


def _alike(placed: PlacedModel, trace: RoutingTrace, step: Step) -> ForwardPass:
    """A pass in which every MoE layer has the traffic of one, counted once."""
    plan = placed.plan
    first = plan.with_(layer_ids=plan.layer_ids[:1], slots_DLGP=plan.slots_DLGP[:, :1], replica_weights_DLGP=None)
    one = ForwardPass.of(placed.with_slots(first), trace, step)
    repeated: dict[str, Any] = {
        field.name: np.repeat(value, plan.layers, axis=0)
        for field in fields(one.traffic)
        if isinstance(value := getattr(one.traffic, field.name), np.ndarray)
    }
    return replace(
        one,
        placed=placed,
        traffic=replace(one.traffic, **repeated),
        expert_seconds_LG=one.expert_seconds_LG.repeat(plan.layers, axis=0),
    )
