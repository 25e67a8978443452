"""One MoE layer of one step relaxed: even loads, the hottest expert, the fewest copies.

A lower bound for every plan.

Axes: G rank, E expert, T token, K choice, D EP group, M member of it, W way, H hot expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.certificates.remote import Homes
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
Bool = npt.NDArray[np.bool_]

HOT = 3  # experts that are looked at one by one
INCOMING = ("nvlink-in", "nic-in")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaxedLayer:
    """Lower bounds for one layer of one step, by EP group: the mean over its ranks, and the slowest of them.

    Copies have means only: which rank is slowest to take them in depends on the plan.
    `copies_mean_DW`: that a rank takes in, and sends back, each way; `expert_least_D`: of any one
    rank's experts; `hears_DW`, `sends_DW`: whether every rank takes copies in that way, and every
    rank's own tokens need one that is far; `missed_D`: of copies by relays, those that a rank may
    not have to wait for (see `moecast.placement.certificates.step_time`); `hot_s_DH`,
    `hot_copies_DHW`: seconds of each of the most wanted experts alone, and copies for it each way;
    `hot_by_all_DH`: whether the tokens of every rank choose it.
    """

    expert_mean_D: Float
    expert_most_D: Float
    expert_least_D: Float
    dispatch_mean_D: Float
    combine_mean_D: Float
    copies_mean_DW: Float
    hears_DW: Bool
    sends_DW: Bool
    missed_D: Float
    hot_s_DH: Float
    hot_copies_DHW: Float
    hot_by_all_DH: Bool

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
    relaxed, copies_DW, hears_DW, sends_DW, hot_s_DH, hot_copies_DHW = [], [], [], [], [], []
    hot_by_all_DH = []
    for group in range(wanted.groups):
        of_group_T = group_T == group
        chosen_TK = experts_TK[of_group_T]
        load_E = np.bincount(chosen_TK[chosen_TK != NO_CHOICE], minlength=wanted.experts)[: wanted.experts]
        even = _expert_floor(problem, float(load_E.sum()) / wanted.ep, np.count_nonzero(load_E) / wanted.ep)
        least = missed = 0.0
        if problem.spare_slots == 0 and len(set(problem.slots_G.tolist())) == 1 and wanted.etp == 1:
            mean_s, least = _partition_floor(problem, load_E)
            even = max(even, mean_s)
        hottest = -(-int(load_E.max(initial=0)) // most_replicas)
        hot = _expert_floor(problem, float(hottest), float(hottest > 0))
        known: list[tuple[float, bool, bool]] = [(0.0, False, False) for _ in ways.ways]
        hot_H = np.argsort(-load_E, kind="stable")[:HOT]
        copies_HW, by_all_H = np.zeros((len(hot_H), len(ways.ways))), np.zeros(len(hot_H), bool)
        if ways.counted:
            tokens, homes_T = LayerTokens.of(chosen_TK, wanted.experts), member_T[of_group_T]
            homes = [way.homes(problem, placed, group, tokens, homes_T) for way in ways.ways]
            known = [_counted_copies(placed, each) for each in homes]
            missed = _missed(problem, placed, tokens, homes_T) if ways.relayed else 0.0
            if not placed.mode.stay:
                copies_HW = _copies_for(ways, homes, hot_H)
                by_all_H = (homes[0].chosen_HE[:, hot_H] > 0).all(axis=0)
        alone = float(ways.counted)  # replicas share an expert's choices
        hot_s_DH.append(
            [_expert_floor(problem, alone * load, float(alone * load > 0)) for load in load_E[hot_H].tolist()]
        )
        hot_copies_DHW.append(copies_HW)
        hot_by_all_DH.append(by_all_H)
        relaxed.append((even, max(even, hot), least, *_copy_floor(problem, placed, chosen_TK), missed))
        for column, values in zip((copies_DW, hears_DW, sends_DW), zip(*known, strict=True), strict=False):
            column.append(values)
    columns = [np.array(column, np.float64) for column in zip(*relaxed, strict=True)]
    return RelaxedLayer(
        expert_mean_D=columns[0],
        expert_most_D=columns[1],
        expert_least_D=columns[2],
        dispatch_mean_D=columns[3],
        combine_mean_D=columns[4],
        missed_D=columns[5],
        copies_mean_DW=np.array(copies_DW, np.float64),
        hears_DW=np.array(hears_DW, bool),
        sends_DW=np.array(sends_DW, bool),
        hot_s_DH=np.array(hot_s_DH),
        hot_copies_DHW=np.array(hot_copies_DHW),
        hot_by_all_DH=np.array(hot_by_all_DH),
    )


def _counted_copies(placed: PlacedModel, homes: Homes) -> tuple[float, bool, bool]:
    """Copies that a rank takes in on average, by counting choices; whether all hear, and all send."""
    if placed.mode.stay:  # homes move with the plan, and nobody knows who sends what
        return 0.0, False, False
    fewest = homes.remote_choices() if placed.mode.per_choice else homes.counted_copies()
    return fewest / placed.plan.ep, homes.all_hear, homes.all_send


def _copies_for(ways: Ways, homes: Sequence[Homes], expert_H: npt.NDArray[np.int64]) -> Float:
    """Copies that whoever holds an expert takes in for it each way, at the least; of whole domains nothing is known."""
    copies_HW = np.zeros((len(expert_H), len(homes)))
    for index, (way, each) in enumerate(zip(ways.ways, homes, strict=True)):
        if way.name != "domains":
            chosen_HE = each.chosen_HE[:, expert_H]
            copies_HW[:, index] = chosen_HE.sum(axis=0) - (each.near_HG.T.astype(np.int64) @ chosen_HE).max(axis=0)
    return copies_HW


def _missed(
    problem: PlacementProblem, placed: PlacedModel, tokens: LayerTokens, member_T: npt.NDArray[np.int32]
) -> float:
    """Copies to domains, of a rank on average, that it may not have to wait for; all where homes move.

    Of a member that leaves u experts unchosen at most ⌊u / P⌋ ranks hear nothing.
    """
    if placed.mode.stay:
        return float("inf")
    members, experts, slots = problem.wanted.ep, tokens.experts, int(problem.slots_G.min())
    sites = placed.sites
    valid_TK = tokens.expert_TK >= 0
    pair = (member_T[:, None].astype(np.int64) * experts + tokens.expert_TK)[valid_TK]
    unchosen_M = experts - (np.bincount(pair, minlength=members * experts).reshape(members, experts) > 0).sum(axis=1)
    tokens_M = np.bincount(member_T[valid_TK.any(axis=1)], minlength=members)
    in_domain = int(min(np.unique(row, return_counts=True)[1].min() for row in sites.place_SM))
    part_M = np.minimum(unchosen_M // slots / in_domain, sites.n_places - 1)
    return float((tokens_M * part_M).sum()) / members


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
