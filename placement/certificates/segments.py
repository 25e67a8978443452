"""What an EP group needs between two barriers of a step: its average rank, its slowest, chains and round trips.

Axes: S task, G rank, D EP group, L MoE layer, W way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.placement.certificates.ports import Port
from moecast.placement.certificates.relaxed import RelaxedLayer
from moecast.placement.certificates.sent import Sent
from moecast.placement.certificates.ways import Ways
from moecast.sim.forward import ForwardPass
from moecast.sim.program import Compute, Exchange, Task

Float = npt.NDArray[np.float64]


class Leg(NamedTuple):
    """Copies that go one way: seconds of each, what the last one needs on top, and how many may not be waited for."""

    way: int
    copy_s: float
    latency_s: float
    missed: float = 0.0

    def seconds(self, copies_W: Float) -> float:
        """For so many copies of a rank."""
        return self.latency_s + self.copy_s * max(0.0, float(copies_W[self.way]) - self.missed)


class Chain(NamedTuple):
    """What follows one after the other: seconds without copies, and the slowest leg of each exchange."""

    base_s: float
    exchanges: tuple[tuple[Leg, ...], ...]

    def seconds(self, copies_W: Float) -> float:
        """With so many copies of a rank each way."""
        return self.base_s + sum(max((leg.seconds(copies_W) for leg in legs), default=0.0) for legs in self.exchanges)


def mean_chain(chains: Sequence[Chain]) -> Chain:
    """The chain of several steps on average, for copies that are known on average.

    Leg by leg, and only those of all steps: a mean of maxima is at least the maximum of means.
    """
    exchanges = []
    for several in zip(*(chain.exchanges for chain in chains), strict=False):
        ways = set.intersection(*({leg.way for leg in legs} for legs in several))
        legs = []
        for way in sorted(ways):
            alike = [leg for legs_of_step in several for leg in legs_of_step if leg.way == way]
            _, copy_s, latency_s, missed = (float(np.mean(column)) for column in zip(*alike, strict=True))
            legs.append(Leg(way, copy_s, latency_s, missed))
        exchanges.append(tuple(legs))
    return Chain(float(np.mean([chain.base_s for chain in chains])), tuple(exchanges))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """One layer of one step: the mean rank's own experts, and round trips of its tokens."""

    layer: int
    own_s: float
    chain: Chain

    def seconds(self, copies_LW: Float) -> float:
        """The longer of the two."""
        return max(self.own_s, self.chain.seconds(copies_LW[self.layer]) if self.chain.exchanges else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What one EP group needs between two barriers: its average rank, its slowest, and its chains.

    `chains`: of the exchanges of one layer; `trips`: of each layer, where no barrier divides them;
    `rest_s`: what the average rank needs beside these; `counted_LW`: copies that a rank takes in on
    average, each way, by counting choices.
    """

    mean_s: float
    most_s: float
    counted_LW: Float
    layer: int = -1
    chains: tuple[Chain, ...] = ()
    trips: tuple[Trip, ...] = ()
    rest_s: float = 0.0

    def seconds(self, copies_LW: Float | None = None) -> float:
        """The longest of all, with copies that a rank takes in on average; None: those of counting."""
        copies_LW = self.counted_LW if copies_LW is None else copies_LW
        chained = [chain.seconds(copies_LW[self.layer]) for chain in self.chains]
        return max(self.mean_s, self.most_s, self.trips_s(copies_LW), *chained)

    def trips_s(self, copies_LW: Float) -> float:
        """Of the average rank, with its round trips."""
        return self.rest_s + sum(trip.seconds(copies_LW) for trip in self.trips) if self.trips else 0.0


def segments_of(
    forward: ForwardPass, tasks: Sequence[Task], relaxed: Sequence[RelaxedLayer], ways: Ways
) -> list[list[Segment]]:
    """Cut a step at its barriers, for each EP group."""
    group_G = forward.placed.sites.group_G
    moves = forward.placed.mode.stay  # then attention, too, is where the plan puts the tokens
    parts = _between_barriers(tasks, group_G)
    return [
        [
            _Stretch(
                tasks=part,
                relaxed=relaxed,
                ways=ways,
                group=group,
                fixed_SG=_fixed_SG(() if moves else part, group_G == group),
                behind_barrier=index > 0,
            ).segment()
            for index, part in enumerate(parts)
        ]
        for group in range(forward.placed.plan.groups)
    ]


def _fixed_SG(tasks: Sequence[Task], members_G: npt.NDArray[np.bool_]) -> Float:
    """Seconds of what no plan changes, task by task on the ranks of a group; none at the end of it."""
    fixed = [task.seconds_R[members_G] for task in tasks if isinstance(task, Compute) and task.kind != "expert"]
    return np.array([*fixed, np.zeros(int(members_G.sum()))])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Stretch:
    """The tasks between two barriers, as one EP group goes through them; `fixed_SG` is of its ranks."""

    tasks: Sequence[Task]
    relaxed: Sequence[RelaxedLayer]
    ways: Ways
    group: int
    fixed_SG: Float
    behind_barrier: bool

    def segment(self) -> Segment:
        """What the group needs for them."""
        most_of_experts = max((layer.expert_most_D[self.group] for layer in self._layers), default=0.0)
        plain = Segment(
            mean_s=self._setups + self._copies + self._experts_mean + float(self.fixed_G.mean()),
            most_s=self._setups + max(float(self.fixed_G.min()) + most_of_experts, float(self.fixed_G.max())),
            counted_LW=np.array([layer.sent_D[self.group].copies_W for layer in self.relaxed]),
        )
        first, last = (self.tasks[0], self.tasks[-1]) if self.tasks else (None, None)
        if not self.ways.ways:
            return plain
        if self.behind_barrier and len(self._layers) == 1 and isinstance(first, Exchange) and first.kind == "dispatch":
            return replace(plain, layer=first.layer, chains=self._from_dispatch(self.relaxed[first.layer]))
        if isinstance(last, Exchange) and last.barrier and last.kind in {"dispatch", "combine"} and last.fill().n:
            return replace(plain, layer=last.layer, chains=self._to_barrier(last, plain.most_s))
        if self.ways.counted and not self.ways.relayed and self._layers:
            return self._with_trips(plain)
        return plain

    def _from_dispatch(self, layer: RelaxedLayer) -> tuple[Chain, ...]:
        """The chain behind a barrier: in, experts, out; and that of whoever is last, where relays share copies."""
        sent = layer.sent_D[self.group]
        fixed_s, there, back, crowd = self._setups + float(self.fixed_G.min()), [], [], []
        for index, way in enumerate(self.ways.ways):
            hears = float(sent.hears_W[index])
            into, out = way.dispatch_in, way.combine_out
            latencies = hears * into.latency_s, hears * out.latency_s
            if way.name == "domains":
                crowd.append(Leg(index, max(into.copy_s, out.copy_s), sum(latencies)))
            missed = sent.missed if way.name == "domains" else 0.0
            there.append(Leg(index, into.copy_s, latencies[0], missed))
            back.append(Leg(index, out.copy_s, latencies[1], missed))
        through = Chain(fixed_s + self._experts_mean, (tuple(there), tuple(back)))
        last = Chain(fixed_s + float(layer.expert_least_D[self.group]), (tuple(crowd),))
        ports = [(way.dispatch_in, way.combine_out) for way in self.ways.ways]
        hot = Chain(self._hottest(sent, ports, fixed_s), ())
        return (through, last, hot) if crowd else (through, hot)

    def _hottest(
        self, sent: Sent, ports_W: Sequence[tuple[Port, ...]], base_s: float, *, with_experts: bool = True
    ) -> float:
        """The chain of a rank that holds a much wanted expert, for it alone, through some ports one after another."""
        chains_s = [
            base_s
            + with_experts * float(expert_s)
            + sum(_through(ports, copies_W) for ports in zip(*ports_W, strict=True))
            for expert_s, copies_W in zip(sent.hot_s_H, sent.hot_copies_HW, strict=True)
        ]
        return max(chains_s, default=0.0)

    def _to_barrier(self, last: Exchange, most_s: float) -> tuple[Chain, ...]:
        """All before an exchange that ends at a barrier, and its copies through the slower of a rank's ports."""
        sent, legs, hot_ports = self.relaxed[last.layer].sent_D[self.group], [], []
        for index, way in enumerate(self.ways.ways):
            there, back = (way.dispatch_in, way.dispatch_out), (way.combine_in, way.combine_out)
            ports = there if last.kind == "dispatch" else back
            latency_s = float(sent.hears_W[index]) * ports[0].latency_s
            legs.append(Leg(index, max(port.copy_s for port in ports), latency_s))
            hot_ports.append((there[0] if last.kind == "dispatch" else back[1],))
        before_s = max(most_s, self._setups + self._experts_mean + float(self.fixed_G.mean()))
        hot = Chain(self._hottest(sent, hot_ports, before_s, with_experts=False), ())
        return Chain(before_s, (tuple(legs),)), hot

    def _with_trips(self, plain: Segment) -> Segment:
        """Let each layer be a round trip of every rank's tokens, where no barrier divides them."""
        rest_s, trips = self._setups + float(self.fixed_G.mean()), []
        for index in (task.layer for task in self.tasks if task.kind == "expert"):
            layer = self.relaxed[index]
            legs = [
                Leg(
                    number,
                    max(way.dispatch_out.copy_s, way.combine_in.copy_s),
                    way.dispatch_out.latency_s + way.combine_in.latency_s,
                )
                for number, way in enumerate(self.ways.ways)
                if layer.sent_D[self.group].sends_W[number]
            ]
            chain = Chain(float(layer.expert_least_D[self.group]), (tuple(legs),) if legs else ())
            trips.append(Trip(layer=index, own_s=float(layer.expert_mean_D[self.group]), chain=chain))
        most_s = max(plain.most_s, self._by_hot_experts())
        return replace(plain, most_s=most_s, trips=tuple(trips), rest_s=rest_s)

    def _by_hot_experts(self) -> float:
        """By two clocks, that of the first rank and that of the last, where all wait for a much wanted expert."""
        into_W = [way.dispatch_in for way in self.ways.ways]
        out_W = [way.combine_out for way in self.ways.ways]
        back_s = max(port.latency_s for port in out_W)
        first_s = last_s = 0.0
        for layer in self._layers:
            sent, least_s = layer.sent_D[self.group], float(layer.expert_least_D[self.group])
            firsts, lasts = [first_s + least_s], [last_s + least_s]
            for hot in np.flatnonzero(sent.hot_by_all_H):
                expert_s, copies_W = float(sent.hot_s_H[hot]), sent.hot_copies_HW[hot]
                served_s = first_s + _through(into_W, copies_W) + expert_s
                firsts += [served_s, last_s + expert_s]
                lasts += [served_s + _through(out_W, copies_W), last_s + expert_s + back_s]
            first_s, last_s = max(firsts), max(lasts)
        return last_s + self._setups + float(self.fixed_SG.min(axis=1).sum())

    @property
    def fixed_G(self) -> Float:
        """Seconds of what no plan changes on each rank."""
        return np.asarray(self.fixed_SG.sum(axis=0))

    @property
    def _layers(self) -> list[RelaxedLayer]:
        return [self.relaxed[task.layer] for task in self.tasks if task.kind == "expert"]

    @property
    def _experts_mean(self) -> float:
        return float(sum(layer.expert_mean_D[self.group] for layer in self._layers))

    @property
    def _setups(self) -> float:
        return float(sum(task.setup_s for task in self.tasks if isinstance(task, Exchange)))

    @property
    def _copies(self) -> float:
        """Of exchanges that begin or end at a barrier: their copies through the links into a rank."""
        total = 0.0
        for index, task in enumerate(self.tasks):
            at_barrier = isinstance(task, Exchange) and (task.barrier or (index == 0 and self.behind_barrier))
            if isinstance(task, Exchange) and at_barrier and task.fill().n:
                total += float(self.relaxed[task.layer].copies_s(task.kind)[self.group])
        return total


def _through(ports: Sequence[Port], copies_W: Float) -> float:
    """Seconds until copies have gone through a rank's ports, the slowest of those that any go through."""
    return max(
        port.latency_s + port.copy_s * copies if copies > 0 else 0.0
        for port, copies in zip(ports, copies_W.tolist(), strict=True)
    )


def _between_barriers(stages: Sequence[Task], group_G: npt.NDArray[np.int32]) -> list[list[Task]]:
    """Cut the stages behind each barrier of whole EP groups; an all-reduce of ranks that share tokens is none."""
    parts: list[list[Task]] = [[]]
    for stage in stages:
        parts[-1].append(stage)
        if isinstance(stage, Exchange) and stage.barrier and np.array_equal(stage.group_R, group_G):
            parts.append([])
    return parts
