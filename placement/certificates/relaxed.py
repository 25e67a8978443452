"""One MoE layer of one step relaxed: even loads, the hottest expert, the fewest copies.

A lower bound for every plan.

Axes: G rank, E expert, T token, K choice, D EP group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.certificates.ports import Port
from moecast.placement.certificates.remote import Homes
from moecast.placement.certificates.step_copies import group_and_member, homes_of
from moecast.sim.cost import ExpertBlock, costs_of
from moecast.sim.placed_model import PlacedModel
from moecast.traces import NO_CHOICE

if TYPE_CHECKING:
    from moecast.placement.problem import PlacementProblem
    from moecast.sim.step import Step

Float = npt.NDArray[np.float64]

INCOMING = ("nvlink-in", "nic-in")


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPorts:
    """What a copy costs a rank's own links, where copies go straight from rank to rank.

    Nothing where relays help.

    `counted`: whether copies between ranks are what the placement decides, and each expert has one
    slot.
    """

    dispatch_in: Port
    dispatch_out: Port
    combine_in: Port
    combine_out: Port
    counted: bool

    @classmethod
    def of(cls, problem: PlacementProblem, placed: PlacedModel) -> CopyPorts:
        """Price a copy into and out of a rank, there and back."""
        mode, plan = placed.mode, problem.wanted
        sends = plan.ep > 1 and plan.etp == 1 and not mode.gathers and not placed.experts_are_summed
        straight = not (mode.relayed and placed.sites.crosses_domains)
        nothing = Port(copy_s=0.0, latency_s=0.0)
        there, back = placed.dispatch_flows, placed.combine_flows
        return cls(
            dispatch_in=Port.into(placed, there) if sends and straight else nothing,
            dispatch_out=Port.out_of(placed, there) if sends and straight else nothing,
            combine_in=Port.into(placed, back) if sends and straight else nothing,
            combine_out=Port.out_of(placed, back) if sends and straight else nothing,
            counted=sends and straight and problem.spare_slots == 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaxedLayer:
    """Lower bounds for one layer of one step, by EP group: the mean over its ranks, and the slowest of them.

    Copies have means only: which rank is slowest to take them in depends on the plan.
    `copies_mean_D`: that a rank takes in, and sends back; `expert_least_D`: of any one rank's
    experts; `hears_D`, `sends_D`: whether every rank takes copies in, and every rank's own tokens
    need another one.
    """

    expert_mean_D: Float
    expert_most_D: Float
    expert_least_D: Float
    dispatch_mean_D: Float
    combine_mean_D: Float
    copies_mean_D: Float
    hears_D: Float
    sends_D: Float

    def copies_s(self, kind: str) -> Float:
        """Of the layer's dispatch or combine; nothing of other exchanges."""
        known = {"dispatch": self.dispatch_mean_D, "combine": self.combine_mean_D}
        return known.get(kind, np.zeros_like(self.dispatch_mean_D))


def relaxed_layer(
    problem: PlacementProblem, placed: PlacedModel, ports: CopyPorts, step: Step, layer: int
) -> RelaxedLayer:
    """Relax one layer: even loads, the hottest expert, the fewest copies."""
    wanted = problem.wanted
    group_T, _ = group_and_member(placed, step)
    experts_TK = problem.trace.experts_TLK[step.token_T, layer]
    most_replicas = min(wanted.ep, problem.spare_slots + 1)
    relaxed = []
    for group in range(wanted.groups):
        chosen_TK = experts_TK[group_T == group]
        load_E = np.bincount(chosen_TK[chosen_TK != NO_CHOICE], minlength=wanted.experts)[: wanted.experts]
        even = _expert_floor(problem, float(load_E.sum()) / wanted.ep, np.count_nonzero(load_E) / wanted.ep)
        least = 0.0
        if sole := (problem.spare_slots == 0 and len(set(problem.slots_G.tolist())) == 1 and wanted.etp == 1):
            mean_s, least = _partition_floor(problem, load_E)
            even = max(even, mean_s)
        hottest = -(-int(load_E.max(initial=0)) // most_replicas)
        hot = _expert_floor(problem, float(hottest), float(hottest > 0))
        copies, hears, sends = 0.0, False, False
        if ports.counted and sole:
            copies, hears, sends = _counted_copies(placed, homes_of(problem, placed, [step], layer, group))
        relaxed.append((even, max(even, hot), least, *_copy_floor(problem, placed, chosen_TK), copies, hears, sends))
    columns = [np.array(column, np.float64) for column in zip(*relaxed, strict=True)]
    return RelaxedLayer(
        expert_mean_D=columns[0],
        expert_most_D=columns[1],
        expert_least_D=columns[2],
        dispatch_mean_D=columns[3],
        combine_mean_D=columns[4],
        copies_mean_D=columns[5],
        hears_D=columns[6],
        sends_D=columns[7],
    )


def _counted_copies(placed: PlacedModel, homes: Homes) -> tuple[float, bool, bool]:
    """Copies that a rank takes in on average, by counting choices; whether all hear, and all send."""
    ranks = len(homes.size_G)
    if placed.mode.stay:  # homes move with the plan, and nobody knows who sends what
        return 0.0, False, False
    if placed.mode.per_choice:
        return homes.remote_choices() / ranks, homes.all_hear, homes.all_send
    slots = int(homes.size_G.max())
    fewest = int(np.maximum(-(-homes.tokens.choices_T // slots) - 1, 0).sum())
    return fewest / ranks, homes.all_hear, homes.all_send


def _partition_floor(problem: PlacementProblem, load_E: npt.NDArray[np.int64]) -> tuple[float, float]:
    """At least so long the mean rank's experts take, and any rank's, where each expert has one slot."""
    costs, block = costs_of(problem.cluster.hardware), ExpertBlock.of(problem.model)
    return costs.partition_floor_seconds(
        block, load_E, ranks=problem.wanted.ep, slots=int(min(problem.slots_G)), phase=problem.workload.kernels
    )


def _expert_floor(problem: PlacementProblem, rows: float, hits: float) -> float:
    """At least so long a rank's experts take for `rows` choices of `hits` experts; convex and rising in both."""
    costs, block = costs_of(problem.cluster.hardware), ExpertBlock.of(problem.model)
    return float(costs.expert_floor_seconds(block, rows, hits, phase=problem.workload.kernels))


def _copy_floor(
    problem: PlacementProblem, placed: PlacedModel, chosen_TK: npt.NDArray[np.uint16]
) -> tuple[float, float]:
    """Mean seconds for which the links into a rank carry the fewest copies that the choices allow: out and back."""
    if placed.mode.stay or placed.mode.gathers or placed.experts_are_summed or problem.wanted.ep == 1:
        return 0.0, 0.0
    slots = int(problem.slots_G.max())
    choices_T = (chosen_TK != NO_CHOICE).sum(1)
    if placed.mode.per_choice:
        out_T = back_T = np.maximum(choices_T - slots, 0)
    else:
        out_T = np.maximum(-(-choices_T // slots) - 1, 0)
        # a domain's results are summed there
        back_T = np.minimum(out_T, 1) if placed.mode.relayed else out_T
    rate_Bps = _incoming_Bps(problem) * problem.wanted.ep
    out, back = (
        float(copies_T.sum()) * flows.copy_bytes / rate_Bps
        for copies_T, flows in ((out_T, placed.dispatch_flows), (back_T, placed.combine_flows))
    )
    return out, back


def _incoming_Bps(problem: PlacementProblem) -> float:
    """Bytes/s that the links into one GPU carry together, at most."""
    kinds = np.array(problem.cluster.link_kind_J)
    return float(sum(problem.cluster.capacity_J[kinds == kind].max(initial=0.0) for kind in INCOMING))
