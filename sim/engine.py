"""The engine: SimPy processes that stand for ranks, and one that stands for the network between them.

The engine knows a network only by what `OpenNetwork` says, so that any rung whose flows can join at
any time runs here.

Axes: S task, G rank of the program, R rank of a task, F flow, K group of flows that end together, A
some of the flows.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
import simpy

from moecast.sim.busy import FlowRanks, add_link_units, busy_seconds, setup_start
from moecast.sim.network.flows import filled
from moecast.sim.program import Compute, Exchange, Float, Flows, Int, StepProgram, StepTimes, Task

Process = Generator[Any, Any, None]


class OpenNetwork(Protocol):
    """A network that flows join at any time; its clock moves only when it is told to."""

    def add(self, flows: Flows, group_F: Int, n_groups: int) -> tuple[int, int]:
        """Make flows known; none starts yet. Returns the index of the first flow and of the first of the groups."""
        ...

    def start(self, first: int, flow_A: Int, at_A: Float) -> None:
        """Start parentless flows, counted from `first`, at their times; those that they feed follow by themselves."""
        ...

    def advance(self, until_s: float) -> list[tuple[int, float]]:
        """Move the clock to `until_s`, or to the end of the first group that ends sooner; return groups and ends."""
        ...

    def times(self, first: int, n: int) -> tuple[Float, Float]:
        """Start and end of `n` flows, counted from `first`."""
        ...


def run_program(program: StepProgram, network: OpenNetwork) -> StepTimes:
    """Send every rank through its tasks, stream by stream, over a network that nothing else uses."""
    env = simpy.Environment()
    step = _Step(env, program, network)
    queues = env.all_of([env.process(step.queue(rank, tasks)) for (rank, _), tasks in step.queues.items()])
    while not queues.processed:
        step.act()
    return step.times()


class _Step:
    """One step under way."""

    def __init__(self, env: simpy.Environment, program: StepProgram, network: OpenNetwork) -> None:
        self.env, self.program, self.network = env, program, network
        self.enter_S = [np.zeros(task.n_ranks) for task in program.tasks]
        self.leave_S = [np.full(task.n_ranks, np.nan) for task in program.tasks]
        self.queues, self.place_S = _queues(program)
        self.meetings: dict[int, _Meeting] = {}
        self.units_J = np.zeros(len(program.capacity_J))
        self.ended: dict[int, simpy.Event] = {}  # by group of flows
        self.left_S = [task.n_ranks for task in program.tasks]
        # by (task, rank) that somebody waits for; −1: all ranks
        self.done: dict[tuple[int, int], simpy.Event] = {}

    def queue(self, rank: int, tasks: list[int]) -> Process:
        """Go through the tasks of one stream as one rank."""
        for index in tasks:
            task, place = self.program.tasks[index], self.place_S[index]
            at = rank if place is None else place[rank]
            yield from self._waits(task, rank)
            self.enter_S[index][at] = self.env.now
            if isinstance(task, Compute):
                yield self.env.timeout(float(task.seconds_R[at]))
            else:
                yield from self._meeting(index, task).attend(at)
            self._leave(index, rank, at)

    def act(self) -> None:
        """Bring the network's clock up to the next moment at which any rank may act, and go through that moment.

        Until then no rank can start a flow, so that the network knows all that happens.
        """
        for group, end in self.network.advance(self.env.peek()):
            arrival = self.env.timeout(max(0.0, end - self.env.now))
            arrival.callbacks.append(partial(_succeed, self.ended.pop(group)))
        now = self.env.peek()
        assert now < np.inf, "ranks wait for what nobody sends"
        while self.env.peek() == now:
            self.env.step()

    def times(self) -> StepTimes:
        """Read every rank's clock at every task."""
        busy_S = [leave_R - enter_R for leave_R, enter_R in zip(self.leave_S, self.enter_S, strict=True)]
        for index, meeting in self.meetings.items():
            busy_S[index] = meeting.busy_seconds(self.enter_S[index], self.leave_S[index])
        return StepTimes(
            enter_S=self.enter_S,
            leave_S=self.leave_S,
            busy_S=busy_S,
            link_bytes_J=self.program.on_every_link(self.units_J),
        )

    def _waits(self, task: Task, rank: int) -> Iterator[simpy.Event]:
        """What a rank still has to wait for before it may enter a task."""
        for index in task.after:
            place = self.place_S[index]
            at = rank if place is None else place.get(rank)
            if at is not None and np.isnan(self.leave_S[index][at]):
                yield self.done.setdefault((index, rank), self.env.event())
        for index in task.after_all:
            if self.left_S[index]:
                yield self.done.setdefault((index, -1), self.env.event())

    def _leave(self, index: int, rank: int, at: int) -> None:
        self.leave_S[index][at] = self.env.now
        self.left_S[index] -= 1
        for key in ((index, rank), (index, -1)):
            if key in self.done and (key[1] >= 0 or not self.left_S[index]):
                self.done.pop(key).succeed()

    def _meeting(self, index: int, exchange: Exchange) -> _Meeting:
        if index not in self.meetings:
            flows = filled(exchange, self.program)
            add_link_units(flows, flows.bytes_F, self.units_J)
            meeting = _Meeting(self.env, exchange, flows, self.network)
            self.ended |= meeting.awaited
            self.meetings[index] = meeting
        return self.meetings[index]


def _queues(program: StepProgram) -> tuple[dict[tuple[int, object], list[int]], list[dict[int, int] | None]]:
    """For each rank and stream the tasks in their order, and for each task where each of its ranks stands in it.

    A task on no stream is a queue of its own.
    """
    queues: dict[tuple[int, object], list[int]] = {}
    places: dict[int, dict[int, int]] = {}  # many tasks share their ranks
    place_S: list[dict[int, int] | None] = []
    for index, task in enumerate(program.tasks):
        if task.ranks_R is not None and id(task.ranks_R) not in places:
            places[id(task.ranks_R)] = {rank: at for at, rank in enumerate(task.ranks_R.tolist())}
        place_S.append(None if task.ranks_R is None else places[id(task.ranks_R)])
        for rank in program.ranks_of(task).tolist():
            queues.setdefault((rank, index if task.stream is None else task.stream), []).append(index)
    return queues, place_S


class _Meeting:
    """One exchange: the ranks that have come, and the flows that they wait for.

    Flows start, and ranks leave, team by team: a team is an EP group behind a barrier, else a rank
    by itself.
    """

    def __init__(self, env: simpy.Environment, exchange: Exchange, flows: Flows, network: OpenNetwork) -> None:
        self.env, self.exchange, self.network = env, exchange, network
        self.ranks_F = FlowRanks.of(flows)
        n_ranks = exchange.n_ranks
        team_R = (exchange.group_R if exchange.barrier else np.arange(n_ranks)).astype(np.int64)
        n_teams = int(team_R.max(initial=-1)) + 1
        starter_F = team_R[flows.source_rank_F]
        leaver_F = starter_F if exchange.barrier else flows.waiter_F.astype(np.int64)
        self.first, group = network.add(flows, leaver_F, n_teams)
        expected_K = np.bincount(leaver_F[leaver_F >= 0], minlength=n_teams)
        self.team_R, self.absent_K = team_R, np.bincount(team_R, minlength=n_teams)
        self.complete_K = [env.event() for _ in range(n_teams)]
        self.ended_K = [env.event() if expected else None for expected in expected_K]
        self.awaited = {group + k: event for k, event in enumerate(self.ended_K) if event is not None}
        roots = np.flatnonzero(np.diff(flows.parent_offsets_F1) == 0)
        roots = roots[np.argsort(starter_F[roots], kind="stable")]
        self.roots_K = np.split(roots, np.searchsorted(starter_F[roots], np.arange(1, n_teams)))

    def attend(self, rank: int) -> Process:
        """Enter, wait for the setup, start the flows, and leave when those that are waited for have ended."""
        team = self.team_R[rank]
        self.absent_K[team] -= 1
        if self.absent_K[team] == 0:
            roots = self.roots_K[team]
            self.network.start(self.first, roots, np.full(len(roots), self.env.now + self.exchange.setup_s))
            self.complete_K[team].succeed()
        yield self.complete_K[team]
        yield self.env.timeout(self.exchange.setup_s)
        ended = self.ended_K[team]
        if ended is not None:
            yield ended

    def busy_seconds(self, enter_R: Float, leave_R: Float) -> Float:
        """How long each rank was busy in it."""
        start_F, end_F = self.network.times(self.first, len(self.ranks_F.source_F))
        return busy_seconds(
            self.exchange,
            self.ranks_F,
            enter_R=enter_R,
            leave_R=leave_R,
            setup_R=setup_start(self.exchange, enter_R),
            start_F=start_F,
            end_F=end_F,
        )


def _succeed(event: simpy.Event, _: simpy.Event) -> None:
    event.succeed()
