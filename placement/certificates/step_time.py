"""The certificate: a step time that no legal plan with these slots can beat.

It bounds the mean step time by the ``bound`` rung from below, and so by ``fluid``, for every placement of the
experts. What a plan cannot change is taken from any plan: the compute outside the experts and the fixed cost of each
exchange. What it can change is relaxed:

- *Experts.* Roofline time grows with rows and with experts hit, and is convex in both once whole tiles and waves are
  left out; so the mean over ranks of it is at least its value at the mean load, and the slowest rank is at least as
  slow as that. Of an expert with c choices and at most r replicas, some rank serves at least ⌈c / r⌉.
- *Copies.* A token that chooses k experts reaches at least ⌈k / P⌉ ranks of P slots, all but one of them over a link.

How the parts of one rank add up to a step: a rank goes through its stages one after the other, so the step takes at
least the mean over ranks of the sum of its compute and setups. Where ranks wait for each other at a barrier in every
layer (the exchange of counts before a normal dispatch), the step takes at least the sum over layers of what the slowest
rank needs between two barriers: at least the mean, and at least the least of the fixed parts with the hottest expert.
Copies are counted only behind a barrier: elsewhere they may have come before a rank asks for them.

Axes: G rank, L MoE layer, E expert, T token, K choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.context.shared import home_ranks
from moecast.sim.cost import ExpertBlock, costs_of
from moecast.sim.forward import ForwardPass
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import Compute, Exchange, Task
from moecast.sim.schedules import beside_in, schedule_tasks
from moecast.traces import NO_CHOICE

if TYPE_CHECKING:
    from moecast.placement.problem import PlacementProblem
    from moecast.sim.step import Step

Float = npt.NDArray[np.float64]

SAFETY = 1 - 1e-9  # sums of thousands of stages round
INCOMING = ("nvlink-in", "nic-in")


def certificate_s(problem: PlacementProblem, steps: Sequence[Step] | None = None) -> float:
    """Mean over steps (None: all planning steps) of a lower bound on each, in seconds."""
    plan = problem.any_plan()
    if (beside := beside_in(plan, problem.workload.kernels)) is not None:
        rule = f"a certificate holds for tasks on one stream, not for {beside}: use sequential and all-gather"
        raise MoecastError(rule, field="schedule", value=plan.schedule)
    placed = PlacedModel.of(problem.cluster, problem.model, plan, phase=problem.workload.kernels, seed=problem.seed)
    bounds = []
    for step in problem.steps if steps is None else steps:
        forward = ForwardPass.of(placed, problem.trace, step)
        relaxed = [_relaxed_layer(problem, placed, step, layer) for layer in range(plan.layers)]
        bounds.append(_step_bound(forward, schedule_tasks(forward), relaxed))
    return SAFETY * float(np.mean(bounds))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Relaxed:
    """Lower bounds for one layer of one step, by EP group: the mean over its ranks, and the slowest of them.

    Copies have means only: which rank is slowest to take them in depends on the plan.
    """

    expert_mean_D: Float
    expert_most_D: Float
    dispatch_mean_D: Float
    combine_mean_D: Float

    def copies_s(self, kind: str) -> Float:
        """Of the layer's dispatch or combine; nothing of other exchanges."""
        known = {"dispatch": self.dispatch_mean_D, "combine": self.combine_mean_D}
        return known.get(kind, np.zeros_like(self.dispatch_mean_D))


def _step_bound(forward: ForwardPass, stages: Sequence[Task], relaxed: Sequence[_Relaxed]) -> float:
    """The larger of what the average rank needs and, group by group, what barriers make everybody wait for."""
    group_G = forward.placed.sites.group_G
    bounds = []
    for group in range(forward.placed.plan.groups):
        segments = [
            _Segment.of(forward, part, relaxed, group, group_G == group, behind_barrier=index > 0)
            for index, part in enumerate(_between_barriers(stages, group_G))
        ]
        average = sum(segment.mean_s for segment in segments)
        bounds.append(max(average, sum(max(segment.mean_s, segment.most_s) for segment in segments)))
    return float(max(bounds))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    """What one EP group needs between two barriers: its average rank, and its slowest."""

    mean_s: float
    most_s: float

    @classmethod
    def of(
        cls,
        forward: ForwardPass,
        stages: Sequence[Task],
        relaxed: Sequence[_Relaxed],
        group: int,
        members_G: npt.NDArray[np.bool_],
        *,
        behind_barrier: bool,
    ) -> _Segment:
        moves = forward.placed.mode.stay  # then attention, too, is where the plan puts the tokens
        fixed_G = np.zeros(int(members_G.sum()))
        setups = copies = 0.0
        layers = [relaxed[stage.layer] for stage in stages if stage.kind == "expert"]
        for index, stage in enumerate(stages):
            if isinstance(stage, Exchange):
                setups += stage.setup_s
                if stage.fill().n and (stage.barrier or (index == 0 and behind_barrier)):
                    copies += relaxed[stage.layer].copies_s(stage.kind)[group]
            elif isinstance(stage, Compute) and stage.kind != "expert" and not moves:
                fixed_G += stage.seconds_R[members_G]
        expert_mean = sum(layer.expert_mean_D[group] for layer in layers)
        expert_most = max((layer.expert_most_D[group] for layer in layers), default=0.0)
        return cls(
            mean_s=setups + copies + expert_mean + float(fixed_G.mean()),
            most_s=setups + max(float(fixed_G.min()) + expert_most, float(fixed_G.max())),
        )


def _between_barriers(stages: Sequence[Task], group_G: npt.NDArray[np.int32]) -> list[list[Task]]:
    """Cut the stages behind each barrier of whole EP groups; an all-reduce of ranks that share tokens is none."""
    parts: list[list[Task]] = [[]]
    for stage in stages:
        parts[-1].append(stage)
        if isinstance(stage, Exchange) and stage.barrier and np.array_equal(stage.group_R, group_G):
            parts.append([])
    return parts


def _relaxed_layer(problem: PlacementProblem, placed: PlacedModel, step: Step, layer: int) -> _Relaxed:
    """Relax one layer: even loads, the hottest expert, the fewest copies."""
    wanted = problem.wanted
    group_T = wanted.layout.group_G[home_ranks(wanted, step, placed.sites.domain_G)]
    experts_TK = problem.trace.experts_TLK[step.token_T, layer]
    most_replicas = min(wanted.ep, problem.spare_slots + 1)
    relaxed = []
    for group in range(wanted.groups):
        chosen_TK = experts_TK[group_T == group]
        load_E = np.bincount(chosen_TK[chosen_TK != NO_CHOICE], minlength=wanted.experts)[: wanted.experts]
        even = _expert_floor(problem, float(load_E.sum()) / wanted.ep, np.count_nonzero(load_E) / wanted.ep)
        hottest = -(-int(load_E.max(initial=0)) // most_replicas)
        hot = _expert_floor(problem, float(hottest), float(hottest > 0))
        relaxed.append((even, max(even, hot), *_copy_floor(problem, placed, chosen_TK)))
    columns = [np.array(column) for column in zip(*relaxed, strict=True)]
    return _Relaxed(
        expert_mean_D=columns[0], expert_most_D=columns[1], dispatch_mean_D=columns[2], combine_mean_D=columns[3]
    )


def _expert_floor(problem: PlacementProblem, rows: float, hits: float) -> float:
    """At least so long a rank's experts take for `rows` choices of `hits` experts; convex and rising in both."""
    costs, block = costs_of(problem.cluster.hardware), ExpertBlock.of(problem.model)
    return costs.expert_floor_seconds(block, rows, hits, phase=problem.workload.kernels)


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
        back_T = np.minimum(out_T, 1) if placed.mode.relayed else out_T  # a domain's results are summed there
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
