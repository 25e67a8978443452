"""The critical path and what ranks wait for, against slow accounts on random graphs of tasks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.sim.breakdown import breakdown, waits_for_peers
from moecast.sim.critical_path import NO_RANK, PathPart, critical_path
from moecast.sim.exposed import stays_by_kind
from moecast.sim.network import Bound, Fluid
from moecast.sim.program import COMMUNICATION, Compute, StepProgram, StepTimes
from moecast.sim.waiting import network_seconds
from tests.sim.network_cases import compute, exchange, make_flows, make_program, switch_flows
from tests.strategies_program import graphs, programs

CLOSE = {"rel": 1e-9, "abs": 1e-12}
RUNGS = [Bound(), Fluid()]
each_rung = pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)


def path_of(program: StepProgram, times: StepTimes) -> tuple[PathPart, ...]:
    return critical_path(program, times, waits_for_peers(program, times).peer_S)


def place_of(program: StepProgram, task: int, rank: int) -> int:
    ranks = program.ranks_of(program.tasks[task]).tolist()
    return ranks.index(rank) if rank in ranks else -1


@each_rung
@settings(max_examples=150, deadline=None)
@given(program=st.one_of(graphs(), programs()))
def test_the_path_is_the_whole_step_without_a_gap(rung: object, program: StepProgram) -> None:
    times = rung.run(program)
    path = path_of(program, times)
    assert sum(part.seconds for part in path) == pytest.approx(times.step_time_s, **CLOSE)
    clock = 0.0
    for part in path:
        assert part.begin_s == pytest.approx(clock, **CLOSE)
        clock = part.end_s
        if part.rank != NO_RANK:  # nobody is on the path outside of a task of its own, but for whom it holds up
            at = place_of(program, part.task, part.rank)
            assert part.begin_s == times.enter_S[part.task][at]
            assert part.end_s <= times.leave_S[part.task].max() * (1 + 1e-9)
    tasks = [part.task for part in path]
    assert tasks == sorted(tasks)
    if rung.name == "fluid":
        assert all(part.rank != NO_RANK for part in path)


@settings(max_examples=150, deadline=None)
@given(program=graphs(most_ranks=4))
def test_each_part_waits_for_the_one_before(program: StepProgram) -> None:
    """A slow list of all that a rank waits for: the part before is over last of these, at the moment of entry."""
    times = Fluid().run(program)
    path = path_of(program, times)
    kept = [part for part in path if part.seconds > 1e-9]
    for part in kept:
        task = program.tasks[part.task]
        earlier = list(enumerate(program.tasks))[: part.task]
        ends = [0.0]
        for index, other in earlier:
            at = place_of(program, index, part.rank)
            on_stream = task.stream is not None and other.stream == task.stream
            if at >= 0 and (index in task.after or on_stream):
                ends.append(times.leave_S[index][at])
            if index in task.after_all:
                ends.append(times.leave_S[index].max())
        assert part.begin_s == pytest.approx(max(ends), **CLOSE)


@each_rung
@settings(max_examples=100, deadline=None)
@given(program=graphs(most_ranks=4), longer=st.sampled_from([0.5, 3.0]))
def test_of_work_alone_exactly_what_is_on_the_path_makes_the_step_longer(
    rung: object, program: StepProgram, longer: float
) -> None:
    """Longest paths of pure work by brute force: lengthening one rank's part of any task on it lengthens the step."""
    tasks = tuple(
        task if isinstance(task, Compute) else work_instead(task, seed=place)
        for place, task in enumerate(program.tasks)
    )
    program = replace(program, tasks=tasks)
    times = rung.run(program)
    assert times.step_time_s == pytest.approx(longest_s(program), **CLOSE)
    for part in path_of(program, times):
        seconds_R = tasks[part.task].seconds_R.copy()
        assert part.seconds == pytest.approx(seconds_R[place_of(program, part.task, part.rank)], **CLOSE)
        seconds_R[place_of(program, part.task, part.rank)] += longer
        slower = (*tasks[: part.task], replace(tasks[part.task], seconds_R=seconds_R), *tasks[part.task + 1 :])
        taken_s = rung.run(replace(program, tasks=slower)).step_time_s
        assert taken_s == pytest.approx(times.step_time_s + longer, **CLOSE)


def work_instead(task: object, seed: int) -> Compute:
    names = ("layer", "ranks_R", "stream", "after", "after_all")
    seconds_R = np.random.default_rng(seed).exponential(1.0, task.n_ranks)
    return Compute(kind="other", seconds_R=seconds_R, **{name: getattr(task, name) for name in names})


def longest_s(program: StepProgram) -> float:
    """Of all ways through the tasks of all ranks, each tried."""

    def ways(index: int, rank: int) -> list[float]:
        task = program.tasks[index]
        own = float(task.seconds_R[place_of(program, index, rank)])
        found = [own]
        before = [place for place in range(index) if place_of(program, place, rank) >= 0]
        on_stream = [
            place for place in before if task.stream is not None and program.tasks[place].stream == task.stream
        ]
        for place in {*on_stream[-1:], *(place for place in task.after if place in before)}:
            found += [own + way for way in ways(place, rank)]
        for place in task.after_all:
            for other in program.ranks_of(program.tasks[place]).tolist():
                found += [own + way for way in ways(place, other)]
        return found

    ends = [(index, rank) for index, task in enumerate(program.tasks) for rank in program.ranks_of(task).tolist()]
    return max(max(ways(index, rank)) for index, rank in ends)


@each_rung
@settings(max_examples=150, deadline=None)
@given(program=graphs(most_ranks=5, most_tasks=8))
def test_what_is_waited_for_is_what_a_slow_account_sees_at_every_moment(rung: object, program: StepProgram) -> None:
    times = rung.run(program)
    waits = waits_for_peers(program, times)
    found_S = network_seconds(program, times, waits.peer_S, stays_by_kind(program, times, waits.idle_S))
    network_s, idle_s = slow_waiting(program, times)
    assert found_S.sum() == pytest.approx(network_s, rel=1e-6, abs=1e-9)
    where = breakdown(program, times)
    if not program.is_sequence:
        assert where.step["idle"] * program.n_ranks == pytest.approx(idle_s, rel=1e-6, abs=1e-9)
        assert where.held_up_s * program.n_ranks == pytest.approx(network_s, rel=1e-6, abs=1e-9)


def slow_waiting(program: StepProgram, times: StepTimes) -> tuple[float, float]:
    """Seconds over ranks that wait for the network, and for work: in every slice of time, asked from rank to rank."""
    waits = waits_for_peers(program, times)
    stays: list[tuple[int, float, float, bool, int]] = []
    for index, task in enumerate(program.tasks):
        for at, rank in enumerate(program.ranks_of(task).tolist()):
            begin, end = times.enter_S[index][at] + waits.idle_S[index][at], times.leave_S[index][at]
            peer_R = waits.peer_S[index]
            peer = rank if peer_R is None else int(program.ranks_of(task)[peer_R[at]])
            stays.append((rank, float(begin), float(end), isinstance(task, Compute), peer))
    done_G = [max((end for who, _, end, _, _ in stays if who == rank), default=0.0) for rank in range(program.n_ranks)]
    end_s, last = max(done_G), int(np.argmax(done_G))
    moments = sorted({0.0, end_s, *(t for _, begin, end, _, _ in stays for t in (begin, end))})

    def state(rank: int, at: float, depth: int) -> str:
        here = [stay for stay in stays if stay[0] == rank]
        if any(begin < at < end and work for _, begin, end, work, _ in here):
            return "work"
        if any(begin < at < end for _, begin, end, _, _ in here):
            return "network"
        later = sorted((begin, work, order, peer) for order, (_, begin, _, work, peer) in enumerate(here) if begin > at)
        first = min((begin for begin, _, _, _ in later), default=end_s)
        if first >= end_s:
            peer = last
        else:
            sends = [peer for begin, work, _, peer in later if begin == first and not work]
            peer = sends[0] if sends else rank
        return "work" if peer == rank or depth > 60 else state(peer, at, depth + 1)

    network_s = (times.step_time_s - end_s) * program.n_ranks
    idle_s = 0.0
    for begin, end in pairwise(moments):
        middle = (begin + end) / 2
        for rank in range(program.n_ranks):
            busy = any(who == rank and a < middle < b for who, a, b, _, _ in stays)
            if not busy and state(rank, middle, 0) == "network":
                network_s += end - begin
            elif not busy:
                idle_s += end - begin
    return network_s, idle_s


@each_rung
def test_waiting_for_one_whom_the_fabric_holds_up_is_the_network_s_on_two_streams(rung: object) -> None:
    """As on one stream: rank 2 sends rank 0 for 5 s, who then works 3 s and owes rank 1 a word of 1 s."""
    first = make_flows([5.0], [[0]], source=[2], destination=[0])
    then = make_flows([1.0], [[1]], source=[0], destination=[1])
    tasks = [exchange(first, 3), compute(3.0, 0.0, 0.0), exchange(then, 3)]
    one = make_program(*tasks, capacity=[1.0, 1.0], ranks=3)
    streams = [COMMUNICATION, "compute", COMMUNICATION]
    linked = [
        replace(task, stream=stream, after=(place - 1,) * (place > 0))
        for place, (task, stream) in enumerate(zip(tasks, streams, strict=True))
    ]
    two = make_program(*linked, capacity=[1.0, 1.0], ranks=3)
    alone, beside = (breakdown(program, rung.run(program)) for program in (one, two))
    assert beside.step == pytest.approx(alone.step, **CLOSE)
    assert beside.held_up_s == pytest.approx(alone.held_up_s, **CLOSE) == pytest.approx((5 + 5 + 1 + 1) / 3)
    assert beside.path_s == pytest.approx(alone.path_s, **CLOSE)
    assert alone.path_s["dispatch"] == pytest.approx(6.0)
    assert alone.path_s["expert"] == pytest.approx(3.0)


@each_rung
def test_the_path_goes_through_the_slow_rank(rung: object) -> None:
    even = exchange(switch_flows(np.full((3, 3), 2.0)), 3)
    program = make_program(compute(7.0, 0.0, 1.0), even, compute(1.0, 1.0, 1.5), capacity=[4.0] * 6, ranks=3)
    times = rung.run(program)
    work, *_ = path = path_of(program, times)
    assert (work.task, work.rank, work.seconds) == (0, 0, 7.0)
    assert [part.task for part in path] == [0, 1, 2]
    assert path[-1].rank == 2
