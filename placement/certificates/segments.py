"""What an EP group needs between two barriers of a step: its average rank, its slowest, chains and round trips.

Axes: G rank, D EP group, L MoE layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moecast.placement.certificates.relaxed import CopyPorts, RelaxedLayer
from moecast.sim.forward import ForwardPass
from moecast.sim.program import Compute, Exchange, Task

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """One layer of one step: the mean rank's own experts, and what a round trip of its tokens takes but for copies."""

    layer: int
    own_s: float
    base_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What one EP group needs between two barriers: its average rank, its slowest, and its chain.

    `chain`: seconds without copies, and seconds of one copy, of the chain dispatch, experts,
    combine of each rank; `trips`: of each layer, where no barrier divides them; `rest_s`: what the
    average rank needs beside these.
    """

    mean_s: float
    most_s: float
    chain: tuple[float, float] | None = None
    layer: int = -1
    copies: float = 0.0
    trips: tuple[Trip, ...] = ()
    rest_s: float = 0.0

    def chain_s(self, copies_L: Float | None = None) -> float:
        """Of the chain, with copies that a rank takes in on average; None: those that counting choices gives."""
        if self.chain is None:
            return 0.0
        return self.chain[0] + self.chain[1] * (self.copies if copies_L is None else float(copies_L[self.layer]))


def segments_of(
    forward: ForwardPass, tasks: Sequence[Task], relaxed: Sequence[RelaxedLayer], ports: CopyPorts
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
                ports=ports,
                group=group,
                fixed_G=_fixed_G(() if moves else part, group_G == group),
                behind_barrier=index > 0,
            ).segment()
            for index, part in enumerate(parts)
        ]
        for group in range(forward.placed.plan.groups)
    ]


def _fixed_G(tasks: Sequence[Task], members_G: npt.NDArray[np.bool_]) -> Float:
    """Seconds of what no plan changes, on the ranks of a group."""
    fixed_G = np.zeros(int(members_G.sum()))
    for task in tasks:
        if isinstance(task, Compute) and task.kind != "expert":
            fixed_G += task.seconds_R[members_G]
    return fixed_G


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Stretch:
    """The tasks between two barriers, as one EP group goes through them; `fixed_G` is of its ranks."""

    tasks: Sequence[Task]
    relaxed: Sequence[RelaxedLayer]
    ports: CopyPorts
    group: int
    fixed_G: Float
    behind_barrier: bool

    def segment(self) -> Segment:
        """What the group needs for them."""
        most_of_experts = max((layer.expert_most_D[self.group] for layer in self._layers), default=0.0)
        plain = Segment(
            mean_s=self._setups + self._copies + self._experts_mean + float(self.fixed_G.mean()),
            most_s=self._setups + max(float(self.fixed_G.min()) + most_of_experts, float(self.fixed_G.max())),
        )
        first, last = (self.tasks[0], self.tasks[-1]) if self.tasks else (None, None)
        one_layer = self.behind_barrier and len(self._layers) == 1 and self.ports.dispatch_in.copy_s > 0
        if one_layer and isinstance(first, Exchange) and first.kind == "dispatch":
            return self._chained(plain, first.layer, self._from_dispatch())
        if isinstance(last, Exchange) and last.barrier and last.kind in {"dispatch", "combine"} and last.fill().n:
            return self._chained(plain, last.layer, self._to_barrier(last))
        if self.ports.counted and self._layers and all(layer.sends_D[self.group] for layer in self._layers):
            return self._with_trips(plain)
        return plain

    def _chained(self, plain: Segment, layer: int, chain: tuple[float, float]) -> Segment:
        copies = float(self.relaxed[layer].copies_mean_D[self.group])
        return replace(plain, chain=chain, layer=layer, copies=copies)

    def _from_dispatch(self) -> tuple[float, float]:
        """The chain behind a barrier: in, experts, out; seconds without copies, and of one."""
        there, back, [layer] = self.ports.dispatch_in, self.ports.combine_out, self._layers
        latency_s = (there.latency_s + back.latency_s) * layer.hears_D[self.group]
        base_s = self._setups + self._experts_mean + latency_s + float(self.fixed_G.min())
        return base_s, there.copy_s + back.copy_s

    def _to_barrier(self, last: Exchange) -> tuple[float, float]:
        """All before an exchange that ends at a barrier, and its copies through the slower of a rank's ports."""
        ports = self.ports
        there, back = (ports.dispatch_in, ports.dispatch_out), (ports.combine_in, ports.combine_out)
        copy_s = max(port.copy_s for port in (there if last.kind == "dispatch" else back))
        return self._setups + self._experts_mean + float(self.fixed_G.mean()), copy_s

    def _with_trips(self, plain: Segment) -> Segment:
        """Let each layer be a round trip of every rank's tokens, where no barrier divides them."""
        latency_s = self.ports.dispatch_out.latency_s + self.ports.combine_in.latency_s
        copy_s = max(self.ports.dispatch_out.copy_s, self.ports.combine_in.copy_s)
        rest_s = self._setups + float(self.fixed_G.mean())
        trips, total_s = [], 0.0
        for index in (task.layer for task in self.tasks if task.kind == "expert"):
            layer = self.relaxed[index]
            base_s = latency_s + float(layer.expert_least_D[self.group])
            trip = Trip(layer=index, own_s=float(layer.expert_mean_D[self.group]), base_s=base_s)
            total_s += max(trip.own_s, base_s + copy_s * float(layer.copies_mean_D[self.group]))
            trips.append(trip)
        return replace(plain, mean_s=max(plain.mean_s, rest_s + total_s), trips=tuple(trips), rest_s=rest_s)

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


def _between_barriers(stages: Sequence[Task], group_G: npt.NDArray[np.int32]) -> list[list[Task]]:
    """Cut the stages behind each barrier of whole EP groups; an all-reduce of ranks that share tokens is none."""
    parts: list[list[Task]] = [[]]
    for stage in stages:
        parts[-1].append(stage)
        if isinstance(stage, Exchange) and stage.barrier and np.array_equal(stage.group_R, group_G):
            parts.append([])
    return parts
