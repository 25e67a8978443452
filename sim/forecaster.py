"""Many plans over the same steps, by the bound: what a search for a plan calls.

Axes: W step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.checks import check_sizes
from moecast.sim.forward import ForwardPass
from moecast.sim.network import Rung, find_rung
from moecast.sim.placed_model import PlacedModel
from moecast.sim.schedules import program_of

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan
    from moecast.sim.step import Step
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace

Float = npt.NDArray[np.float64]


class Forecaster:
    """Times plans over fixed steps.

    Paths are found once for all plans that share a layout and types.

    Parameters
    ----------
    steps
        Steps of one phase, as `draw_steps` gives them.
    seed
        Of the hash that picks paths.
    """

    def __init__(
        self, cluster: Cluster, model: ModelShape, trace: RoutingTrace, steps: Sequence[Step], *, seed: int = 0
    ) -> None:
        self._cluster, self._model, self._trace, self._steps, self._seed = cluster, model, trace, tuple(steps), seed
        self._placed_models: dict[tuple[object, ...], PlacedModel] = {}

    def step_times(self, plan: Plan, *, network: str | Rung = "bound") -> Float:
        """Time each step under a plan: float64 [W], seconds.

        Raises
        ------
        MoecastError
            L, E or K of trace, model and plan differ, or the plan names GPUs that the cluster does
            not have.
        """
        check_sizes(self._model, plan, self._trace)
        rung = find_rung(network)
        times_W = np.empty(len(self._steps))
        for index, step in enumerate(self._steps):
            forward = ForwardPass.of(self._placed(plan, step.kernels), self._trace, step)
            times_W[index] = rung.run(program_of(forward)).step_time_s
        return times_W

    def objective_s(self, plan: Plan) -> float:
        """Mean step time under a plan, by the bound."""
        return float(self.step_times(plan).mean())

    def _placed(self, plan: Plan, phase: str) -> PlacedModel:
        exchanges = (plan.dispatch, plan.dispatch_type, plan.combine_type, plan.sequence_parallel)
        key = (phase, plan.gpu_of_rank, plan.ep, plan.etp, plan.tp, plan.cp, plan.context_exchange, *exchanges)
        if key not in self._placed_models:
            self._placed_models[key] = PlacedModel.of(self._cluster, self._model, plan, phase=phase, seed=self._seed)
        known = self._placed_models[key]
        if known.plan is not plan:
            known = self._placed_models[key] = known.with_slots(plan)
        return known


def bound_objective_s(
    cluster: Cluster, model: ModelShape, trace: RoutingTrace, steps: Sequence[Step], plan: Plan, *, seed: int = 0
) -> float:
    """Mean step time of one plan over these steps, by the bound; for many plans keep a `Forecaster`."""
    return Forecaster(cluster, model, trace, steps, seed=seed).objective_s(plan)
