"""The engine: SimPy processes that stand for ranks, and one that stands for the network between them.

The engine knows a network only by what `OpenNetwork` says, so that any rung whose flows can join at any time runs here.

Axes: S stage, G rank, F flow, K group of flows that end together, A some of the flows.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any, Protocol

import numpy as np
import simpy

from moecast.sim.accounts import busy_seconds, link_bytes, setup_start
from moecast.sim.program import Compute, Exchange, Float, Flows, Int, StepProgram, StepTimes

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
    """Send every rank through the stages, over a network that nothing else uses."""
    env = simpy.Environment()
    step = _Step(env, program, network)
    ranks = [env.process(step.rank(g)) for g in range(program.n_ranks)]
    env.process(step.network_clock())
    env.run(until=env.all_of(ranks))
    return step.times()


class _Step:
    """One step under way."""

    def __init__(self, env: simpy.Environment, program: StepProgram, network: OpenNetwork) -> None:
        self.env, self.program, self.network = env, program, network
        self.enter_SG = np.zeros((len(program.stages), program.n_ranks))
        self.leave_SG = np.zeros_like(self.enter_SG)
        self.meetings: dict[int, _Meeting] = {}
        self.ended: dict[int, simpy.Event] = {}  # by group of flows

    def rank(self, rank: int) -> Process:
        """Go through the stages as one rank."""
        for index, stage in enumerate(self.program.stages):
            self.enter_SG[index, rank] = self.env.now
            if isinstance(stage, Compute):
                yield self.env.timeout(float(stage.seconds_G[rank]))
            else:
                yield from self._meeting(index, stage).attend(rank)
            self.leave_SG[index, rank] = self.env.now

    def network_clock(self) -> Process:
        """Keep the network's clock just behind the ranks': it may move on as long as no rank can start a flow.

        A timeout that ends now stands behind everything else that happens now, so when this process runs, SimPy's
        next event is the first at which any rank may act. Two such processes in one environment would wait for each
        other for ever.
        """
        while True:
            for group, end in self.network.advance(self.env.peek()):
                arrival = self.env.timeout(max(0.0, end - self.env.now))
                arrival.callbacks.append(partial(_succeed, self.ended.pop(group)))
            if self.env.peek() == np.inf:
                return
            yield self.env.timeout(self.env.peek() - self.env.now)

    def times(self) -> StepTimes:
        """Read every rank's clock at every stage."""
        busy_SG = self.leave_SG - self.enter_SG
        for index, meeting in self.meetings.items():
            start_F, end_F = self.network.times(meeting.first, meeting.exchange.flows.n)
            busy_SG[index] = busy_seconds(
                meeting.exchange, enter_G=self.enter_SG[index], leave_G=self.leave_SG[index],
                setup_G=setup_start(meeting.exchange, self.enter_SG[index]), start_F=start_F, end_F=end_F,
            )  # fmt: skip
        return StepTimes(
            enter_SG=self.enter_SG, leave_SG=self.leave_SG, busy_SG=busy_SG, link_bytes_J=link_bytes(self.program)
        )

    def _meeting(self, index: int, exchange: Exchange) -> _Meeting:
        if index not in self.meetings:
            meeting = _Meeting(self.env, exchange, self.network)
            self.ended |= meeting.awaited
            self.meetings[index] = meeting
        return self.meetings[index]


class _Meeting:
    """One exchange: the ranks that have come, and the flows that they wait for.

    Flows start, and ranks leave, team by team: a team is an EP group behind a barrier, else a rank by itself.
    """

    def __init__(self, env: simpy.Environment, exchange: Exchange, network: OpenNetwork) -> None:
        self.env, self.exchange, self.network = env, exchange, network
        flows, n_ranks = exchange.flows, len(exchange.group_G)
        team_G = (exchange.group_G if exchange.barrier else np.arange(n_ranks)).astype(np.int64)
        n_teams = int(team_G.max(initial=-1)) + 1
        starter_F = team_G[flows.source_rank_F]
        leaver_F = starter_F if exchange.barrier else flows.waiter_F.astype(np.int64)
        self.first, group = network.add(flows, leaver_F, n_teams)
        expected_K = np.bincount(leaver_F[leaver_F >= 0], minlength=n_teams)
        self.team_G, self.absent_K = team_G, np.bincount(team_G, minlength=n_teams)
        self.complete_K = [env.event() for _ in range(n_teams)]
        self.ended_K = [env.event() if expected else None for expected in expected_K]
        self.awaited = {group + k: event for k, event in enumerate(self.ended_K) if event is not None}
        roots = np.flatnonzero(np.diff(flows.parent_offsets_F1) == 0)
        roots = roots[np.argsort(starter_F[roots], kind="stable")]
        self.roots_K = np.split(roots, np.searchsorted(starter_F[roots], np.arange(1, n_teams)))

    def attend(self, rank: int) -> Process:
        """Enter, wait for the setup, start the flows, and leave when those that are waited for have ended."""
        team = self.team_G[rank]
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


def _succeed(event: simpy.Event, _: simpy.Event) -> None:
    event.succeed()
