"""One MoE layer of one step relaxed: even loads, the hottest expert, the fewest copies.

A lower bound for every plan.

Axes: G rank, E expert, T token, K choice, D EP group.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.certificates.sent import Sent
from moecast.placement.certificates.step_copies import group_and_member
from moecast.placement.certificates.tokens import LayerTokens
from moecast.placement.certificates.ways import Ways
from moecast.sim.cost import ExpertBlock, costs_of
from moecast.sim.placed_model import PlacedModel
from moecast.traces import NO_CHOICE

if TYPE_CHECKING:
    from moecast.placement.problem import PlacementProblem
    from moecast.sim.step import Step

Float = npt.NDArray[np.float64]

INCOMING = ("nvlink-in", "nic-in")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaxedLayer:
    """Lower bounds for one layer of one step, by EP group: the mean over its ranks, and the slowest of them.

    Copies have means only: which rank is slowest to take them in depends on the plan.
    `expert_least_D`: of any one rank's experts; `sent_D`: what is known of copies.
    """

    expert_mean_D: Float
    expert_most_D: Float
    expert_least_D: Float
    dispatch_mean_D: Float
    combine_mean_D: Float
    sent_D: tuple[Sent, ...]

    def copies_s(self, kind: str) -> Float:
        """Of the layer's dispatch or combine; nothing of other exchanges."""
        known = {"dispatch": self.dispatch_mean_D, "combine": self.combine_mean_D}
        return known.get(kind, np.zeros_like(self.dispatch_mean_D))


def relaxed_layer(problem: PlacementProblem, placed: PlacedModel, ways: Ways, step: Step, layer: int) -> RelaxedLayer:
    """Relax one layer: even loads, the hottest expert, the fewest copies."""
    wanted = problem.wanted
    group_T, member_T = group_and_member(placed, step)
    experts_TK = problem.trace.experts_TLK[step.token_T, layer]
    most_replicas = min(wanted.ep, problem.spare_slots + 1)
    relaxed, sent = [], []
    for group in range(wanted.groups):
        of_group_T = group_T == group
        chosen_TK = experts_TK[of_group_T]
        load_E = np.bincount(chosen_TK[chosen_TK != NO_CHOICE], minlength=wanted.experts)[: wanted.experts]
        even = _expert_floor(problem, float(load_E.sum()) / wanted.ep, np.count_nonzero(load_E) / wanted.ep)
        least = 0.0
        if problem.spare_slots == 0 and len(set(problem.slots_G.tolist())) == 1 and wanted.etp == 1:
            mean_s, least = _partition_floor(problem, load_E)
            even = max(even, mean_s)
        hottest = -(-int(load_E.max(initial=0)) // most_replicas)
        hot = _alone(problem, hottest)
        tokens = LayerTokens.of(chosen_TK, wanted.experts)
        sent.append(Sent.of(problem, placed, ways, group, tokens, member_T[of_group_T], partial(_alone, problem)))
        relaxed.append((even, max(even, hot), least, *_copy_floor(problem, placed, chosen_TK)))
    columns = [np.array(column, np.float64) for column in zip(*relaxed, strict=True)]
    return RelaxedLayer(
        expert_mean_D=columns[0],
        expert_most_D=columns[1],
        expert_least_D=columns[2],
        dispatch_mean_D=columns[3],
        combine_mean_D=columns[4],
        sent_D=tuple(sent),
    )


def _alone(problem: PlacementProblem, load: int) -> float:
    """At least so long a rank's experts take with one that is chosen so often."""
    return _expert_floor(problem, float(load), float(load > 0))


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
