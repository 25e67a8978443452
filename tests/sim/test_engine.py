"""A whole step under fluid: who waits for whom, what counts as busy, and a slow account of the same rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from moecast.sim.engine import run_program
from moecast.sim.network import Fluid, OpenFluid
from moecast.sim.program import Exchange, StepProgram, StepTimes
from tests.sim.network_cases import SlowStep, compute, exchange, make_flows, make_program, switch_flows
from tests.strategies_program import programs, random_program

CLOSE = {"rel": 1e-9, "abs": 0.0}


def run(*stages: object, capacity: list[float], ranks: int) -> StepTimes:
    return Fluid().run(make_program(*stages, capacity=capacity, ranks=ranks))  # type: ignore[arg-type]


def test_a_rank_leaves_when_what_it_waits_for_has_come_and_not_when_its_sends_are_over() -> None:
    flows = make_flows([6.0], [[0]], source=[0], destination=[1], latency=0.5)
    times = run(compute(1.0, 0.0), exchange(flows, 2, setup=0.25), compute(2.0, 2.0), capacity=[2.0], ranks=2)
    assert times.leave_SG[1] == pytest.approx([1.25, 1.25 + 3.0 + 0.5], **CLOSE)
    assert times.leave_SG[2] == pytest.approx([3.25, 6.75], **CLOSE)
    assert times.step_time_s == pytest.approx(6.75, **CLOSE)
    assert times.enter_SG[1] == pytest.approx([1.0, 0.0], **CLOSE)


def test_bytes_that_came_before_a_rank_entered_do_not_hold_it() -> None:
    flows = make_flows([2.0], [[0]], source=[0], destination=[1])
    times = run(compute(0.0, 10.0), exchange(flows, 2, setup=0.25), capacity=[2.0], ranks=2)
    assert times.leave_SG[1] == pytest.approx([0.25, 10.25], **CLOSE)


def test_behind_a_barrier_all_start_with_the_last_and_leave_with_the_last() -> None:
    flows = make_flows([2.0, 6.0], [[0], [1]], source=[0, 1], destination=[1, 0], waiter=[1, -1])
    stages = compute(1.0, 3.0, 0.0), exchange(flows, 3, setup=0.5, barrier=True, groups=[0, 0, 1])
    times = run(*stages, capacity=[2.0, 2.0], ranks=3)
    assert times.leave_SG[1] == pytest.approx([6.5, 6.5, 0.5], **CLOSE)
    assert times.busy_SG[1] == pytest.approx([3.5, 3.5, 0.5], **CLOSE)


def test_busy_is_setup_and_own_flows_and_the_rest_is_idle() -> None:
    flows = make_flows([2.0, 2.0], [[0], [1]], source=[0, 1], destination=[1, 2])
    times = run(compute(0.0, 5.0, 0.0), exchange(flows, 3, setup=0.5), capacity=[1.0, 1.0], ranks=3)
    assert times.leave_SG[1] == pytest.approx([0.5, 5.5, 7.5], **CLOSE)
    assert times.busy_SG[1] == pytest.approx([0.5, 0.5, 2.5], **CLOSE)
    assert times.busy_SG[0] == pytest.approx([0.0, 5.0, 0.0], **CLOSE)


def test_exchanges_of_different_stages_share_links() -> None:
    slow = make_flows([4.0], [[0]], source=[0], destination=[2])
    quick = make_flows([4.0], [[0]], source=[1], destination=[3])
    nothing = make_flows([], [])
    times = run(exchange(slow, 4), exchange(nothing, 4), exchange(quick, 4), capacity=[1.0], ranks=4)
    assert times.leave_SG[-1] == pytest.approx([0.0, 0.0, 8.0, 8.0], **CLOSE)


def test_an_all_to_all_after_uneven_work_costs_what_the_slowest_receiver_waits() -> None:
    n, sends = 4, np.full((4, 4), 3.0)
    stages = compute(0.0, 0.0, 0.0, 2.0), exchange(switch_flows(sends, latency=0.5), n, setup=0.25)
    times = run(*stages, capacity=[6.0] * 2 * n, ranks=n)
    assert times.leave_SG[1] == pytest.approx([2.25 + 1.5 + 0.5] * 3 + [0.25 + 1.5 + 0.5], **CLOSE)


def test_link_bytes_are_the_sum_over_the_flows_that_use_each_link() -> None:
    flows = make_flows([2.0, 4.0], [[0, 1], [1]], share=0.5)
    times = run(exchange(flows, 1), exchange(flows, 1), capacity=[1.0, 1.0, 1.0], ranks=1)
    assert times.link_bytes_J == pytest.approx([2.0, 6.0, 0.0], **CLOSE)


def test_a_program_that_does_not_fit_its_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="task 0: seconds_R"):
        run(compute(1.0, 1.0), capacity=[1.0], ranks=3)
    with pytest.raises(ValueError, match="seconds_R must be finite"):
        run(compute(np.nan), capacity=[1.0], ranks=1)
    with pytest.raises(ValueError, match="capacity_J"):
        run(compute(1.0), capacity=[0.0], ranks=1)
    with pytest.raises(ValueError, match="waiter_F"):
        run(exchange(make_flows([1.0], [[0]], destination=[1]), 1), capacity=[1.0], ranks=1)


@settings(max_examples=100, deadline=None)
@given(programs(most_ranks=4, most_stages=5))
def test_every_step_agrees_with_the_slow_account(program: StepProgram) -> None:
    np.testing.assert_allclose(Fluid().run(program).leave_SG, SlowStep(program).run(), rtol=1e-8, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(programs())
def test_clocks_never_run_back_and_busy_fits_into_the_stay(program: StepProgram) -> None:
    times = Fluid().run(program)
    assert (times.enter_SG[0] == 0).all()
    assert (times.leave_SG >= times.enter_SG).all()
    assert (times.enter_SG[1:] == times.leave_SG[:-1]).all()
    stay_SG = times.leave_SG - times.enter_SG
    assert (times.busy_SG >= 0).all()
    assert (times.busy_SG <= stay_SG + 1e-12 * times.step_time_s).all()


@settings(max_examples=40, deadline=None)
@given(programs())
def test_leaving_parallel_links_out_changes_nothing(program: StepProgram) -> None:
    every_link = run_program(program, OpenFluid(program.capacity_J))
    np.testing.assert_allclose(Fluid().run(program).leave_SG, every_link.leave_SG, rtol=1e-9)


def test_same_program_same_bytes() -> None:
    program = random_program(np.random.default_rng(3), ranks=6, stages=6)
    first, second = Fluid().run(program), Fluid().run(program)
    for name in ("enter_SG", "leave_SG", "busy_SG", "link_bytes_J", "last_S"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


def test_bytes_on_links_are_conserved() -> None:
    program = random_program(np.random.default_rng(5), ranks=5, stages=6)
    expected_J = np.zeros(len(program.capacity_J))
    for stage in program.tasks:
        if isinstance(stage, Exchange):
            flow_X = np.repeat(np.arange(stage.fill().n), np.diff(stage.fill().offsets_F1))
            np.add.at(expected_J, stage.fill().link_X, stage.fill().bytes_F[flow_X] * stage.fill().share_X)
    np.testing.assert_allclose(Fluid().run(program).link_bytes_J, expected_J, rtol=1e-12)
