"""A step's program with one thing slower or faster: a family of kernels, an exchange, a kind of cable.

Tasks and links alone change; what was laid out by the old speeds (chunks that relays wait for, which algorithm adds
sums up) stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moecast.sim.collectives.links import link_kinds
from moecast.sim.gains import cable_of
from moecast.sim.program import Compute, Exchange, Flows, FlowSource, Sizes, StepProgram, Task

if TYPE_CHECKING:
    from moecast.topology import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is other than it is taken to be.

    Parameters
    ----------
    kinds
        Parts of a step (`moecast.sim.program.Kind`) whose tasks of one sort, computing or exchanging, take `times` as
        long.
    computing
        Which sort.
    cables
        Kinds of cable (`moecast.sim.gains.cable_of`) that carry 1 / `times` as much.
    times
        Of the time as it is taken to be.
    routing
        A law that tokens choose by; None: as the question says.
    fill
        The part of each batch that is in flight.
    host_s
        What a rank waits for its host in each direction of an MoE layer of a training step; None: as the recipe says.

    Raises
    ------
    ValueError
        A factor that is not positive, or a fill above 1.
    """

    kinds: tuple[str, ...] = ()
    computing: bool = True
    cables: tuple[str, ...] = ()
    times: float = 1.0
    routing: str | None = None
    fill: float = 1.0
    host_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.times < float("inf"):
            raise ValueError(f"times = {self.times}: more than 0")
        if not 0 < self.fill <= 1:
            raise ValueError(f"fill = {self.fill}: more than 0, at most 1")

    def of(self, program: StepProgram, cluster: Cluster) -> StepProgram:
        """The program changed so; routing and fill are changed before there is one."""
        if self.times == 1:
            return program
        tasks = tuple(self.task(task) for task in program.tasks) if self.kinds else program.tasks
        return self.links(replace(program, tasks=tasks), cluster)

    def links(self, program: StepProgram, cluster: Cluster) -> StepProgram:
        """The program with links changed so, and tasks as they are."""
        if not self.cables or self.times == 1:
            return program
        slower_J = np.array([cable_of(kind) in self.cables for kind in link_kinds(cluster)])
        return replace(program, capacity_J=np.where(slower_J, 1 / self.times, 1.0) * program.capacity_J)

    def task(self, task: Task) -> Task:
        """A task changed so."""
        if task.kind not in self.kinds or isinstance(task, Compute) != self.computing:
            return task
        if isinstance(task, Compute):
            return replace(task, seconds_R=np.ascontiguousarray(task.seconds_R * self.times))
        assert isinstance(task, Exchange)
        return replace(task, flows=_Longer(flows=task.flows, times=self.times), setup_s=task.setup_s * self.times)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Longer:
    """Flows that take so many times as long: bytes, latencies and what relays wait for."""

    flows: FlowSource
    times: float

    @property
    def most(self) -> int:
        return self.flows.most

    def fill(self) -> Flows:
        flows = self.flows.fill()
        names = ("bytes_F", "latency_F", "feed_delay_F", "feed_tail_F")
        return replace(flows, **{name: getattr(flows, name) * self.times for name in names})

    def sized(self) -> tuple[Flows, Sizes]:
        return self.fill().sized()
