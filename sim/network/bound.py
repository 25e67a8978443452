"""The bound rung: a lower bound on what `fluid` gives each rank at each task, without following a single event.

Axes: S task, G rank of the program, R rank of a task, F flow, J link, K EP group, C crowd (see
`moecast.sim.network.crowds`).
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from moecast.sim.busy import FlowRanks, busy_seconds, setup_start
from moecast.sim.network.exchange_bounds import leave_bounds
from moecast.sim.network.flows import check_program
from moecast.sim.network.links import parallel_links
from moecast.sim.network.served import Begun, no_past
from moecast.sim.network.shared import SharedFlows, Structures
from moecast.sim.program import Compute, Exchange, Float, Int32, Sizes, StepProgram, StepTimes, Task

MOST_PAIRS = 20_000_000
"""Flows and their links that are kept for the next exchange with the same: some 200 MB."""


class Bound:
    """The longest path through lower bounds: a max-plus recursion over the tasks in their order, rank by rank.

    What it rests on, for the same capacities and routes, whatever shares the links (so also for `fluid`):

    1. *Alone.* A flow ends no sooner than its start, its bytes times share over its slowest link's capacity, and its
       latency. A fed flow starts and ends no sooner than its parents' earliest starts and ends allow.
    2. *A port.* Of the flows that a rank waits for, those that start at s or later all cross a link in no less than
       the sum of their loads on it; the last of them then has its latency to come. A flow that feeds one that the
       rank waits for counts too: the rank leaves no sooner than that flow's end and the tails along the chain.
       This runs on from exchange to exchange: a rank has left neither before all of both had crossed the link.
    3. *Somebody is last.* The same sum over the flows that any rank of an EP group waits for bounds the moment when
       the last rank of the group leaves. Which rank that is remains open; the number M says only that *some* rank r*
       leaves no sooner than M.
    4. *And others wait for it.* r* enters the next exchange no sooner than M and its own work in between. A rank w to
       which r* sends leaves no sooner than that, the setup and the flow's time alone; and somebody leaves no sooner
       than all that r* sends has crossed its ports. As r* is not known, the least over all ranks of the group is
       taken, r* = w among them; where some rank sends w nothing it says nothing about w. Behind a barrier, nobody
       starts sooner than the least over r* of its entry.

    2 runs on only along one stream, where a rank has left the one before it enters the other. 4 holds where every rank
    goes through every task on one stream (`StepProgram.is_sequence`): elsewhere nothing says what the last rank of an
    exchange does next, and 3 is kept as a floor of that exchange alone.

    Nothing here asks how a link is shared, so the bound is what a network could do that serves whom it likes first;
    fair sharing lets all who share a port finish together and late. On 32 GPUs it is 0.83 to 0.97 of `fluid` for random
    all-to-all traffic that is even, 0.7 where ranks are unevenly popular.

    Each holds for any shares of the links and for any later start than assumed, so by induction over the tasks every
    time is a lower bound. How long a rank is busy is none: it is counted as in `fluid`, each flow moving from its
    earliest start until the last link on its way has served all that its EP group waits for, as fair sharing would.
    """

    name = "bound"
    times_every_step = True
    is_lower_bound = True

    def supports(self, _program: StepProgram, /) -> str | None:
        """Time everything."""
        return None

    def run(self, program: StepProgram) -> StepTimes:
        """When each rank enters and leaves each task, at the earliest.

        Raises
        ------
        ValueError
            The program's arrays do not fit together.
        """
        check_program(program)
        walk = _Walk(program)
        for task in program.tasks:
            walk.take(task)
        return walk.times()


class _Walk:
    """A program under way: what is known of the tasks so far."""

    def __init__(self, program: StepProgram) -> None:
        self.program, self.bottleneck_J = program, parallel_links(program)
        self.is_sequence = program.is_sequence
        self.enter_S: list[Float] = []
        self.leave_S: list[Float] = []
        self.busy_S: list[Float] = []
        self.floor_S: list[float] = []
        self.units_J = np.zeros(len(program.capacity_J))
        self.free_G: dict[str, Float] = {}  # by stream: when each rank is done with all before
        self.pasts: dict[tuple[str | None, int], _Past] = {}
        self.place_J = np.full(len(program.capacity_J), -1, np.int64)
        self.used = Counter(id(task.flows) for task in program.exchanges)
        self.shared: dict[tuple[int, int, int, bool], SharedFlows] = {}
        self.kept_pairs = 0
        self.structures = Structures()
        self.one_grouping = _one_grouping(program)

    def take(self, task: Task) -> None:
        """Take the next task."""
        enter_R, floor_s = self._enter(task), 0.0
        if isinstance(task, Compute):
            leave_R, busy_R = enter_R + task.seconds_R, np.asarray(task.seconds_R, np.float64)
            if self.is_sequence:
                past = self._past(task)
                past.work_R = past.work_R + task.seconds_R
                floor_s = past.floor_s
        else:
            leave_R, busy_R, floor_s = self._exchange(task, enter_R)
        if task.stream is not None:
            free_G = self.free_G.setdefault(task.stream, np.zeros(self.program.n_ranks))
            free_G[self._place(task)] = leave_R
        self.enter_S.append(enter_R)
        self.leave_S.append(leave_R)
        self.busy_S.append(busy_R)
        self.floor_S.append(floor_s)

    def times(self) -> StepTimes:
        """What all of it comes to."""
        self._let_go()
        return StepTimes(
            enter_S=self.enter_S,
            leave_S=self.leave_S,
            busy_S=self.busy_S,
            link_bytes_J=self.program.on_every_link(self.units_J),
            floor_S=np.array(self.floor_S),
        )

    def _enter(self, task: Task) -> Float:
        """When each of a task's ranks may enter it: its stream is free, and what it waits for is done."""
        enter_R = np.zeros(task.n_ranks)
        if task.stream in self.free_G:
            enter_R = self.free_G[task.stream][self._place(task)].copy()
        for place in task.after:
            np.maximum(enter_R, self._left(place, task), out=enter_R)
        for place in task.after_all:
            np.maximum(enter_R, max(self.leave_S[place].max(initial=0.0), self.floor_S[place]), out=enter_R)
        return enter_R

    def _left(self, place: int, task: Task) -> Float:
        """When each of a task's ranks left an earlier one; 0 for those that took no part in it."""
        before = self.program.tasks[place]
        if before.ranks_R is task.ranks_R:
            return self.leave_S[place]
        left_G = np.zeros(self.program.n_ranks)
        left_G[self._place(before)] = self.leave_S[place]
        return np.asarray(left_G[self._place(task)])

    def _place(self, task: Task) -> slice | Int32:
        return slice(None) if task.ranks_R is None else task.ranks_R

    def _past(self, task: Task) -> _Past:
        """What exchanges before on the same stream and the same ranks leave behind."""
        key = task.stream, id(task.ranks_R)
        if task.stream is None or key not in self.pasts:
            self.pasts[key] = _Past(task.n_ranks)
        return self.pasts[key]

    def _exchange(self, exchange: Exchange, enter_R: Float) -> tuple[Float, Float, float]:
        (shared, sizes), past = self._shared(exchange), self._past(exchange)
        leave_R, busy_R = self._bounds(exchange, shared, sizes, enter_R, past)
        floor_s = past.floor_s
        if not self.is_sequence:
            past.left_R = np.full(exchange.n_ranks, -np.inf)
        return leave_R, busy_R, floor_s

    def _shared(self, exchange: Exchange) -> tuple[SharedFlows, Sizes]:
        """The flows of an exchange: what follows from them alone, shared by all of a template, and their sizes."""
        flows, sizes = exchange.flows.sized()
        key = id(flows), id(exchange.group_R), exchange.n_ranks, exchange.barrier
        if key not in self.shared:
            found = SharedFlows.of(flows, exchange, self.bottleneck_J, self.program.capacity_J, self.structures)
            if flows is exchange.flows and self.used[id(flows)] == 1:
                found.take(sizes)
                found.add_units(self.units_J)
                return found, sizes
            if self.kept_pairs > MOST_PAIRS:
                self._let_go()
            self.shared[key] = found
            self.kept_pairs += len(flows.link_X) + flows.n
        self.shared[key].take(sizes)
        return self.shared[key], sizes

    def _let_go(self) -> None:
        for shared in self.shared.values():
            shared.add_units(self.units_J)
        self.shared.clear()
        self.kept_pairs = 0

    def _bounds(
        self, exchange: Exchange, shared: SharedFlows, sizes: Sizes, enter_R: Float, past: _Past
    ) -> tuple[Float, Float]:
        """Earliest leave and the busy seconds of each rank; tells `past` when the last of each group leaves."""
        group_R = exchange.group_R
        last_enter_R, setup_R = past.enter(group_R, enter_R), setup_start(exchange, enter_R)
        if exchange.barrier:
            setup_R = np.maximum(setup_R, _least(group_R, last_enter_R)[group_R])
        begun = Begun(
            group_R,
            shared.structure.n_groups,
            exchange.barrier,
            setup_R + exchange.setup_s,
            last_enter_R + exchange.setup_s,
        )
        moving = shared.moving(sizes, begun)
        one_grouping = self.one_grouping[exchange.stream, id(exchange.ranks_R)]
        leave_R, left_K, fair_F, past.served = leave_bounds(
            moving, shared.structure.crowds, shared.structure.slots, begun, past.served, one_grouping, self.place_J
        )
        past.leave(left_K)
        busy_R = busy_seconds(
            exchange,
            FlowRanks(shared.flows.source_rank_F, shared.flows.destination_rank_F, sizes.waiter_F),
            enter_R=enter_R,
            leave_R=leave_R,
            setup_R=setup_R,
            start_F=moving.start_F,
            end_F=fair_F,
            order_F=moving.order_F,
        )
        return leave_R, busy_R


def _one_grouping(program: StepProgram) -> dict[tuple[str | None, int], bool]:
    """Whether all exchanges of the same ranks on a stream are among the same groups."""
    first: dict[tuple[str | None, int], Int32] = {}
    same: dict[tuple[str | None, int], bool] = {}
    for exchange in program.exchanges:
        key = exchange.stream, id(exchange.ranks_R)
        of_R = first.setdefault(key, exchange.group_R)
        alike = of_R is exchange.group_R or np.array_equal(of_R, exchange.group_R)
        same[key] = same.get(key, True) and alike
    return same


class _Past:
    """What earlier exchanges leave behind, besides the time at which each rank left.

    The last rank of each EP group, whichever it is, left no sooner than `left_R`; each rank has computed `work_R`
    since. `served` is what the links have served for the ranks, and for the EP groups.
    """

    def __init__(self, n_ranks: int) -> None:
        self.group_R = np.full(n_ranks, -1, np.int32)
        self.left_R = np.full(n_ranks, -np.inf)
        self.work_R = np.zeros(n_ranks)
        self.served = no_past(n_ranks)

    def enter(self, group_R: Int32, enter_R: Float) -> Float:
        """When each rank enters at the earliest if it is the one that was last."""
        if group_R is not self.group_R and not np.array_equal(group_R, self.group_R):
            self.group_R = group_R
            self.served = self.served.of_first(len(group_R))
            return enter_R
        return np.maximum(enter_R, self.left_R + self.work_R)

    @property
    def floor_s(self) -> float:
        """When the last rank of all is done at the earliest, whichever that is."""
        if self.group_R[0] < 0:
            return 0.0
        return float(_least(self.group_R, self.left_R + self.work_R)[self.group_R].max(initial=0.0))

    def leave(self, left_K: Float) -> None:
        """Start again from an exchange that the last rank of each group leaves no sooner than `left_K`."""
        self.left_R = left_K[self.group_R]
        self.work_R = np.zeros_like(self.work_R)


def _least(group_R: Int32, value_R: Float) -> Float:
    """Take the least value in each EP group; infinite for a number that no group has."""
    least_K = np.full(int(group_R.max(initial=-1)) + 1, np.inf)
    np.minimum.at(least_K, group_R, value_R)
    return least_K
