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

Where copies go straight from rank to rank, two more lemmas price them. Neither adds mean expert time to the floor of a
link that ranks share: that is no bound, since one rank's experts run while another's copies travel.

- *Chain.* Behind a barrier that all pass at b, rank r begins its experts no sooner than b, the setup and all copies
  into it have crossed its own port; it sends back what it received no sooner than its experts are done; and whoever
  waits for the last of that leaves the combine no sooner. So the next barrier, for which all wait, comes no sooner
  than b + setups + in_r + experts_r + out_r + the least of the fixed parts behind, for every r, and so for their
  mean. The copies of in_r and out_r are the same, and their mean over ranks is what `Homes` proves.
- *Round trip.* Without a barrier, rank r leaves the combine when all of its tokens are back. Its copies leave through
  its own port, which takes out_r; the last of them then has its latency, the experts of whoever serves it, and the
  way back: setups + out_r + latencies + the least time of any rank's experts. Or: all results come in through its
  port, none before one copy went there and was served; the same with in_r. Per layer the mean rank needs the most of
  this and of its own experts with the setups. It holds where every rank's tokens need another rank, whatever the
  placement.

Valid for schedules whose tasks stand on one stream, refused for others. Proved copies are of all steps together: a mean
over steps of maxima is at least the maximum of their means.

Axes: G rank, L MoE layer, E expert, T token, K choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.placement.certificates.ports import Port
from moecast.placement.certificates.remote import Homes
from moecast.placement.certificates.step_copies import group_and_member, homes_of, proved_copies
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


def certificate_s(
    problem: PlacementProblem,
    steps: Sequence[Step] | None = None,
    *,
    prove_nodes: int = 0,
    time_limit_s: float = np.inf,
    say: Callable[[str], None] | None = None,
) -> float:
    """Mean over steps (None: all planning steps) of a lower bound on each, in seconds.

    Parameters
    ----------
    prove_nodes
        Sets that set partitioning looks at for each layer's copies, over all steps together; 0: copies are bounded by
        counting choices alone.
    time_limit_s
        CPU seconds of it, over all layers.
    say
        Told how far that is, in words, layer by layer.
    """
    plan = problem.any_plan()
    if (beside := beside_in(plan, problem.workload.kernels)) is not None:
        rule = f"a certificate holds for tasks on one stream, not for {beside}: use sequential and all-gather"
        raise MoecastError(rule, field="schedule", value=plan.schedule)
    placed = PlacedModel.of(problem.cluster, problem.model, plan, phase=problem.workload.kernels, seed=problem.seed)
    ports = _Ports.of(problem, placed)
    bounds, segments_S = [], []
    steps = problem.steps if steps is None else tuple(steps)
    for step in steps:
        forward = ForwardPass.of(placed, problem.trace, step)
        relaxed = [_relaxed_layer(problem, placed, ports, step, layer) for layer in range(plan.layers)]
        tasks = schedule_tasks(forward)
        segments_S.append(_segments(forward, tasks, relaxed, ports))
        bounds.append(_step_bound(segments_S[-1]))
    least = float(np.mean(bounds))
    if prove_nodes and ports.counted:
        copies_DL = proved_copies(problem, placed, steps, most_nodes=prove_nodes, time_limit_s=time_limit_s, say=say)
        least = max(least, _pooled_bound(segments_S, copies_DL / len(steps), ports))
    return SAFETY * least


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ports:
    """What a copy costs a rank's own links, where copies go straight from rank to rank; nothing where relays help.

    `counted`: whether copies between ranks are what the placement decides, and each expert has one slot.
    """

    dispatch_in: Port
    dispatch_out: Port
    combine_in: Port
    combine_out: Port
    counted: bool

    @classmethod
    def of(cls, problem: PlacementProblem, placed: PlacedModel) -> _Ports:
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
class _Relaxed:
    """Lower bounds for one layer of one step, by EP group: the mean over its ranks, and the slowest of them.

    Copies have means only: which rank is slowest to take them in depends on the plan. `copies_mean_D`: that a rank
    takes in, and sends back; `expert_least_D`: of any one rank's experts; `hears_D`, `sends_D`: whether every rank
    takes copies in, and every rank's own tokens need another one.
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


def _step_bound(segments_DI: Sequence[Sequence[_Segment]]) -> float:
    """The larger of what the average rank needs and, group by group, what barriers make everybody wait for."""
    bounds = []
    for segments in segments_DI:
        average = sum(segment.mean_s for segment in segments)
        bounds.append(max(average, sum(max(segment.mean_s, segment.most_s, segment.chain_s()) for segment in segments)))
    return float(max(bounds))


def _pooled_bound(segments_SDI: Sequence[Sequence[Sequence[_Segment]]], copies_DL: Float, ports: _Ports) -> float:
    """The same for the mean of all steps, of which the copies are known together: `copies_DL` of a rank and step.

    A mean of maxima is at least the maximum of means.
    """
    bounds = []
    for group, copies_L in enumerate(copies_DL):
        total = 0.0
        for parts in zip(*(segments_DI[group] for segments_DI in segments_SDI), strict=True):
            known = float(np.mean([max(part.mean_s, part.most_s, part.chain_s()) for part in parts]))
            chained = float(np.mean([part.chain_s(copies_L) for part in parts]))
            total += max(known, chained)
            # Trips of several layers in one segment: of each layer the better of its two bounds.
            if parts[0].trips:
                of_layers = [
                    max(np.mean(own_L), np.mean(base_L) + ports_s * copies_L[layer])
                    for (layer, ports_s), own_L, base_L in _by_layer(parts, ports)
                ]
                total = max(total, float(np.mean([part.rest_s for part in parts])) + float(sum(of_layers)))
        bounds.append(total)
    return max(bounds)


def _by_layer(parts: Sequence[_Segment], ports: _Ports) -> Iterator[tuple[tuple[int, float], list[float], list[float]]]:
    """Of each layer of a segment: seconds of a copy, and over steps what a rank needs by itself and for a trip."""
    copy_s = max(ports.dispatch_out.copy_s, ports.combine_in.copy_s)
    for trips in zip(*(part.trips for part in parts), strict=True):
        yield (trips[0].layer, copy_s), [trip.own_s for trip in trips], [trip.base_s for trip in trips]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trip:
    """One layer of one step: the mean rank's own experts, and what a round trip of its tokens takes but for copies."""

    layer: int
    own_s: float
    base_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    """What one EP group needs between two barriers: its average rank, its slowest, and its chain.

    `chain`: seconds without copies, and seconds of one copy, of the chain dispatch, experts, combine of each rank;
    `trips`: of each layer, where no barrier divides them; `rest_s`: what the average rank needs beside these.
    """

    mean_s: float
    most_s: float
    chain: tuple[float, float] | None = None
    layer: int = -1
    copies: float = 0.0
    trips: tuple[_Trip, ...] = ()
    rest_s: float = 0.0

    def chain_s(self, copies_L: Float | None = None) -> float:
        """Of the chain, with copies that a rank takes in on average; None: those that counting choices gives."""
        if self.chain is None:
            return 0.0
        return self.chain[0] + self.chain[1] * (self.copies if copies_L is None else float(copies_L[self.layer]))


def _segments(
    forward: ForwardPass, tasks: Sequence[Task], relaxed: Sequence[_Relaxed], ports: _Ports
) -> list[list[_Segment]]:
    """Cut a step at its barriers, for each EP group."""
    group_G = forward.placed.sites.group_G
    parts = _between_barriers(tasks, group_G)
    return [
        [
            _segment(forward, part, relaxed, ports, group, group_G == group, index > 0)
            for index, part in enumerate(parts)
        ]
        for group in range(forward.placed.plan.groups)
    ]


def _segment(
    forward: ForwardPass,
    stages: Sequence[Task],
    relaxed: Sequence[_Relaxed],
    ports: _Ports,
    group: int,
    members_G: npt.NDArray[np.bool_],
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
    mean_s = setups + copies + expert_mean + float(fixed_G.mean())
    most_s = setups + max(float(fixed_G.min()) + expert_most, float(fixed_G.max()))
    first = stages[0] if stages else None
    chained = behind_barrier and len(layers) == 1 and ports.dispatch_in.copy_s > 0
    if chained and isinstance(first, Exchange) and first.kind == "dispatch":
        layer = layers[0]
        latency_s = (ports.dispatch_in.latency_s + ports.combine_out.latency_s) * layer.hears_D[group]
        base_s = setups + expert_mean + latency_s + float(fixed_G.min())
        return _Segment(
            mean_s=mean_s,
            most_s=most_s,
            chain=(base_s, ports.dispatch_in.copy_s + ports.combine_out.copy_s),
            layer=first.layer,
            copies=float(layer.copies_mean_D[group]),
        )
    last = stages[-1] if stages else None
    if isinstance(last, Exchange) and last.barrier and last.kind in {"dispatch", "combine"} and last.fill().n:
        there, back = (ports.dispatch_in, ports.dispatch_out), (ports.combine_in, ports.combine_out)
        copy_s = max(port.copy_s for port in (there if last.kind == "dispatch" else back))
        base_s = setups + expert_mean + float(fixed_G.mean())
        return _Segment(
            mean_s=mean_s,
            most_s=most_s,
            chain=(base_s, copy_s),
            layer=last.layer,
            copies=float(relaxed[last.layer].copies_mean_D[group]),
        )
    trips = []
    if ports.counted and layers and all(layer.sends_D[group] for layer in layers):
        latency_s = ports.dispatch_out.latency_s + ports.combine_in.latency_s
        copy_s = max(ports.dispatch_out.copy_s, ports.combine_in.copy_s)
        for stage in stages:
            if stage.kind == "expert":
                layer = relaxed[stage.layer]
                base_s = latency_s + float(layer.expert_least_D[group])
                trips.append(_Trip(layer=stage.layer, own_s=float(layer.expert_mean_D[group]), base_s=base_s))
        rest_s = setups + float(fixed_G.mean())
        tripped = [max(t.own_s, t.base_s + copy_s * float(relaxed[t.layer].copies_mean_D[group])) for t in trips]
        mean_s = max(mean_s, rest_s + sum(tripped))
        return _Segment(mean_s=mean_s, most_s=most_s, trips=tuple(trips), rest_s=rest_s)
    return _Segment(mean_s=mean_s, most_s=most_s)


def _between_barriers(stages: Sequence[Task], group_G: npt.NDArray[np.int32]) -> list[list[Task]]:
    """Cut the stages behind each barrier of whole EP groups; an all-reduce of ranks that share tokens is none."""
    parts: list[list[Task]] = [[]]
    for stage in stages:
        parts[-1].append(stage)
        if isinstance(stage, Exchange) and stage.barrier and np.array_equal(stage.group_R, group_G):
            parts.append([])
    return parts


def _relaxed_layer(problem: PlacementProblem, placed: PlacedModel, ports: _Ports, step: Step, layer: int) -> _Relaxed:
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
    return _Relaxed(
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
