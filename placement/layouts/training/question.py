"""What a layout of a training job is asked: the model, the cluster, the routing, and the job's recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moecast.errors import MoecastError
from moecast.sim.cost import kernels_on
from moecast.sim.engines import MEGATRON, NEUTRAL
from moecast.sim.memory import MEMORY_FRACTION
from moecast.traces import NO_CHOICE

if TYPE_CHECKING:
    import numpy.typing as npt

    from moecast.sim.model import ModelShape
    from moecast.sim.training import Recipe
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingQuestion:
    """Whose steps are timed: everything but the layout.

    Parameters
    ----------
    trace
        How tokens choose; of one MoE layer it stands for all of them.
    recipe
        Sequence length, global batch, precision, optimizer, wait for hosts. Its microbatch, recomputation and level of
        ZeRO are the layouts' to decide.
    drawn, from_phase
        As of `moecast.sim.training.simulate_training`.
    memory_fraction
        The part of a GPU's memory that a job takes.

    Raises
    ------
    MoecastError
        No microbatch is drawn, or the trace is of another shape than the model.
    """

    cluster: Cluster
    model: ModelShape
    trace: RoutingTrace
    recipe: Recipe
    drawn: int = 1
    from_phase: str | None = None
    memory_fraction: float = MEMORY_FRACTION
    seed: int = 0

    def __post_init__(self) -> None:
        if self.drawn < 1:
            raise MoecastError("at least 1", field="drawn", value=self.drawn)
        if self.recipe.moe_schedule != "sequential":
            rule = "layouts are searched with MoE layers that are gone through in one piece: sequential"
            raise MoecastError(rule, field="--moe-schedule", value=self.recipe.moe_schedule)
        layers, experts, choices = self.trace.meta.shape_LEK
        own = self.model.shape_LEK
        if (experts, choices) != own[1:] or layers not in (1, own[0]):
            raise MoecastError(f"{self.model.name} has L, E, K = {own}", field="trace", value=self.trace.meta.shape_LEK)
        if self.cluster.hardware.engine == NEUTRAL.name:  # as moecast.sim.training does
            object.__setattr__(self, "cluster", kernels_on(self.cluster, engine=MEGATRON.name))

    def choices_L(self) -> npt.NDArray[np.int64]:
        """The fewest choices that any token of the trace makes at each MoE layer."""
        made_LT = (self.trace.experts_TLK != NO_CHOICE).sum(axis=2).T
        return np.broadcast_to(made_LT.min(axis=1), (self.model.shape_LEK[0],)).astype(np.int64)

    def one_layer(self) -> TrainingQuestion:
        """The same with the routing of the first MoE layer, which then stands for all."""
        return self if self.trace.meta.layers == 1 else replace(self, trace=_first_layer(self.trace))


def _first_layer(trace: RoutingTrace) -> RoutingTrace:
    from moecast.sim.trace_layers import trace_of_layers

    return trace_of_layers(trace, [0])
