"""Tasks on streams: what may run beside what, under both rungs, and a slow account of the same rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from moecast.errors import MoecastError
from moecast.sim.breakdown import breakdown
from moecast.sim.network import Bound, Fluid
from moecast.sim.program import COMMUNICATION, Compute, StepProgram
from moecast.sim.timeline import PROCESS, program_timeline
from tests.sim.network_cases import SlowStep, compute, exchange, make_flows, make_program
from tests.strategies_program import graphs, programs

CLOSE = {"rel": 1e-9, "abs": 1e-12}
RUNGS = [Bound(), Fluid()]


def as_array(program: StepProgram, values_S: object) -> np.ndarray:
    """[S, G] of what is given for each task's own ranks; 0 for others."""
    dense = np.zeros((len(program.tasks), program.n_ranks))
    for index, (task, values_R) in enumerate(zip(program.tasks, values_S, strict=True)):
        dense[index, program.ranks_of(task)] = values_R
    return dense


@settings(max_examples=150, deadline=None)
@given(graphs(most_ranks=4))
def test_every_graph_agrees_with_the_slow_account(program: StepProgram) -> None:
    leave_SG = as_array(program, Fluid().run(program).leave_S)
    np.testing.assert_allclose(leave_SG, SlowStep(program).run(), rtol=1e-8, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_the_bound_is_below_fluid_rank_by_rank(program: StepProgram) -> None:
    low, high = Bound().run(program), Fluid().run(program)
    for name in ("enter_S", "leave_S"):
        for below_R, above_R in zip(getattr(low, name), getattr(high, name), strict=True):
            assert (below_R <= above_R * (1 + 1e-9) + 1e-12).all()
    assert (low.last_S <= high.last_S * (1 + 1e-9) + 1e-12).all()
    np.testing.assert_allclose(low.link_bytes_J, high.link_bytes_J, rtol=1e-12)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@settings(max_examples=60, deadline=None)
@given(program=graphs())
def test_a_rank_does_one_task_of_a_stream_at_a_time_and_none_too_early(rung: object, program: StepProgram) -> None:
    times = rung.run(program)
    enter_SG, leave_SG = as_array(program, times.enter_S), as_array(program, times.leave_S)
    free: dict[tuple[int, str], float] = {}
    for index, task in enumerate(program.tasks):
        ranks = program.ranks_of(task)
        assert (leave_SG[index] >= enter_SG[index]).all()
        for rank in ranks.tolist():
            if task.stream is not None:
                assert enter_SG[index, rank] >= free.get((rank, task.stream), 0.0) - 1e-12
                free[rank, task.stream] = leave_SG[index, rank]
            assert all(enter_SG[index, rank] >= leave_SG[place, rank] - 1e-12 for place in task.after)
            assert all(enter_SG[index, rank] >= leave_SG[place].max() - 1e-12 for place in task.after_all)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@settings(max_examples=40, deadline=None)
@given(program=graphs())
def test_the_parts_are_the_whole_step_and_what_is_hidden_fits_into_the_compute(
    rung: object, program: StepProgram
) -> None:
    times = rung.run(program)
    where = breakdown(program, times)
    assert sum(where.step.values()) == pytest.approx(times.step_time_s, **CLOSE)
    assert min(where.step.values()) >= 0
    work = sum(task.seconds_R.sum() for task in program.tasks if isinstance(task, Compute)) / program.n_ranks
    assert where.step["expert"] <= work * (1 + 1e-9) + 1e-12
    streams = len(program.streams) + len(program.tasks)
    assert -1e-12 <= where.overlapped_s <= work * streams + 1e-12


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@settings(max_examples=40, deadline=None)
@given(program=programs())
def test_edges_instead_of_a_stream_change_nothing(rung: object, program: StepProgram) -> None:
    """A list on one stream is the same as a chain of tasks that stand on no stream and wait for the one before."""
    chain = [replace(task, stream=None, after=(index - 1,) * (index > 0)) for index, task in enumerate(program.tasks)]
    linked = replace(program, tasks=tuple(chain))
    if rung.name == "fluid":
        np.testing.assert_allclose(rung.run(linked).leave_SG, rung.run(program).leave_SG, rtol=1e-9)
    else:  # what the last rank does next is not followed along edges
        assert (rung.run(linked).leave_SG <= rung.run(program).leave_SG * (1 + 1e-9)).all()


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_communication_runs_under_compute_of_another_stream(rung: object) -> None:
    flows = make_flows([6.0], [[0]], source=[0], destination=[1])
    beside = replace(exchange(flows, 2), stream=COMMUNICATION)
    last = replace(compute(1.0, 1.0), after=(0, 1))
    program = make_program(compute(2.0, 2.0), beside, last, capacity=[2.0], ranks=2)
    times = rung.run(program)
    assert times.leave_SG[2] == pytest.approx([3.0, 4.0], **CLOSE)
    where = breakdown(program, times)
    assert where.step["expert"] == pytest.approx(3.0, **CLOSE)
    assert where.step["dispatch"] == pytest.approx(0.5, **CLOSE)  # one second exposed on one of two ranks
    assert where.step["idle"] == pytest.approx(0.5, **CLOSE)
    assert where.overlapped_s == pytest.approx(1.0, **CLOSE)


def test_every_stream_of_a_rank_is_a_track() -> None:
    flows = make_flows([6.0], [[0]], source=[0], destination=[1])
    beside = replace(exchange(flows, 2), stream=COMMUNICATION, microbatch=3)
    program = make_program(compute(2.0, 2.0), beside, capacity=[2.0], ranks=2)
    events = program_timeline(program, Fluid().run(program))["traceEvents"]
    events = [event for event in events if event["pid"] == PROCESS]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted(names.values()) == [
        "rank 0, communication",
        "rank 0, compute",
        "rank 1, communication",
        "rank 1, compute",
    ]
    [arrival] = [e for e in events if e["ph"] == "X" and e["name"] == "dispatch"]
    assert names[arrival["tid"]] == "rank 1, communication"
    assert arrival["args"]["microbatch"] == 3
    assert arrival["dur"] == pytest.approx(3e6)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_a_task_that_waits_for_a_later_one_is_refused(rung: object) -> None:
    program = make_program(compute(1.0), replace(compute(1.0), after=(1,)), capacity=[1.0], ranks=1)
    with pytest.raises(ValueError, match="task 1: after = 1: must be an earlier task"):
        rung.run(program)


def test_a_step_of_more_flows_than_fit_is_refused_before_they_are_made() -> None:
    class Many:
        most = 10**9

        def fill(self) -> None:
            raise AssertionError("no flow is made")

    [task] = make_program(exchange(make_flows([], []), 1), capacity=[1.0], ranks=1).tasks
    program = make_program(replace(task, flows=Many()), capacity=[1.0], ranks=1)
    assert Bound().supports(program) is None
    with pytest.raises(MoecastError, match="network = 'fluid': follows up to 1,000,000,000 flows"):
        Fluid().run(program)
