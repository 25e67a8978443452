"""How long a step takes if every rank waits for the last one at every stage.

An estimate, not a bound: it lies within 3 % of ``fluid`` on the clusters tried, and puts plans in
its order, where the ``bound`` rung does not: what that leaves out grows with the unevenness of a
plan. It adds up over layers.

Axes: L MoE layer, G rank, P slot of a rank, J link, W step, C count of copies (source,
destination), F flow, X (flow, link) pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from moecast.sim.collectives.links import link_capacity
from moecast.sim.forward import ForwardPass
from moecast.sim.program import Compute
from moecast.sim.schedules import schedule_tasks

if TYPE_CHECKING:
    from moecast.sim.collectives.template import FlowTemplate
    from moecast.sim.placed_model import PlacedModel
    from moecast.sim.step import Step
    from moecast.traces import RoutingTrace

Float = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]

MOVED = ("dispatch", "expert", "combine")
"""Kinds of stages that a placement changes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate:
    """What a placement is estimated to take.

    Parameters
    ----------
    slots_LGP
        The placement.
    layer_s_L
        Mean time of each MoE layer's dispatch, experts and combine.
    step_s
        Mean step time.
    """

    slots_LGP: Int32
    layer_s_L: Float
    step_s: float


class Estimator:
    """Estimates placements over fixed steps.

    Parameters
    ----------
    placed
        Of any plan of the layout.
    trace, steps
        What is in flight.
    worst
        Estimate the worst step, each layer's and the sum, instead of the mean.
    """

    def __init__(self, placed: PlacedModel, trace: RoutingTrace, steps: Sequence[Step], *, worst: bool = False) -> None:
        self._trace, self._steps, self._worst = trace, tuple(steps), worst
        self._fixed_s = [_fixed_seconds(ForwardPass.of(placed, trace, step)) for step in self._steps]
        self._links = [_LinkSeconds(flows, placed) for flows in (placed.dispatch_flows, placed.combine_flows)]

    def estimate(self, placed: PlacedModel) -> Estimate:
        """Estimate the placed's plan."""
        layer_s_WL = np.array([self._layers(ForwardPass.of(placed, self._trace, step)) for step in self._steps])
        step_s_W = np.array(self._fixed_s) + layer_s_WL.sum(axis=1)
        layer_s_L, step_s = layer_s_WL.mean(axis=0), float(step_s_W.mean())
        if self._worst:
            layer_s_L, step_s = layer_s_WL.max(axis=0), float(step_s_W.max())
        return Estimate(slots_LGP=placed.plan.slots_DLGP[0], layer_s_L=layer_s_L, step_s=step_s)

    def _layers(self, forward: ForwardPass) -> Float:
        """Seconds of each layer that depend on the placement."""
        mode, traffic = forward.placed.mode, forward.traffic
        seconds_L: Float = forward.expert_seconds_LG.max(1)
        if forward.placed.plan.ep == 1:
            return seconds_L
        layers = [traffic.layer(layer) for layer in range(traffic.layers)]
        for links, counts_of in zip(self._links, (mode.dispatch_counts, mode.combine_counts), strict=True):
            seconds_L = seconds_L + links.busiest_s_L(np.array([counts_of(layer) for layer in layers]))
        return seconds_L


class _LinkSeconds:
    """Seconds for which each link is busy, by copies from each source to each destination; and the longest way."""

    def __init__(self, flows: FlowTemplate, placed: PlacedModel) -> None:
        capacity_J = link_capacity(placed.sites)
        flow_X = np.repeat(np.arange(len(flows.legs.count_F)), np.diff(flows.offsets_F1))
        count_X = flows.legs.count_F[flow_X]
        sent_X = count_X >= 0
        seconds_X = flows.copy_bytes * flows.share_X / capacity_J[flows.link_X]
        n_counts = int(flows.legs.count_F.max(initial=0)) + 1
        self._seconds_JC: Any = csr_array(
            (seconds_X[sent_X], (flows.link_X[sent_X], count_X[sent_X])), shape=(len(capacity_J), n_counts)
        )
        self._latency_s = float(flows.latency_F.max(initial=0.0))

    def busiest_s_L(self, counts_LC: npt.NDArray[np.int64]) -> Float:
        """Seconds of each layer's busiest link, and its latency."""
        used = counts_LC[:, : self._seconds_JC.shape[1]]
        busiest: Float = (self._seconds_JC @ used.T.astype(np.float64)).max(axis=0) + self._latency_s
        return busiest


def _fixed_seconds(forward: ForwardPass) -> float:
    """Seconds that no placement changes: compute outside the experts, and the setup of every exchange."""
    stages = schedule_tasks(forward)
    return sum(
        (0.0 if stage.kind in MOVED else float(stage.seconds_R.max())) if isinstance(stage, Compute) else stage.setup_s
        for stage in stages
    )
