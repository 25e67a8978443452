"""bound: never above fluid, and equal to it where one port decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.sim.network import Bound, Fluid
from moecast.sim.program import Exchange, Flows, StepProgram, StepTimes
from tests.sim.network_cases import compute, exchange, make_flows, make_program, reordered, switch_flows
from tests.strategies_program import programs, random_program

CLOSE = {"rel": 1e-9, "abs": 0.0}


def run(*stages: object, capacity: list[float], ranks: int) -> StepTimes:
    return Bound().run(make_program(*stages, capacity=capacity, ranks=ranks))  # type: ignore[arg-type]


def check_below(bound: StepTimes, fluid: StepTimes) -> None:
    """Compare per rank, per stage and per step."""
    slack = 1e-9 * fluid.step_time_s
    assert (bound.enter_SG <= fluid.enter_SG * (1 + 1e-9) + slack * 1e-3).all()
    assert (bound.leave_SG <= fluid.leave_SG * (1 + 1e-9) + slack * 1e-3).all()
    assert (bound.last_S <= fluid.last_S * (1 + 1e-9) + slack * 1e-3).all()
    assert bound.step_time_s <= fluid.step_time_s * (1 + 1e-9)


@pytest.mark.slow
def test_bound_is_below_fluid_on_thousands_of_programs() -> None:
    for seed in range(3000):
        rng = np.random.default_rng(seed)
        program = random_program(
            rng,
            ranks=int(rng.integers(1, 7)),
            stages=int(rng.integers(1, 7)),
            density=float(rng.choice([0.2, 0.7, 1.0])),
            even=bool(rng.random() < 0.3),
            fed=bool(rng.random() < 0.6),
        )
        check_below(Bound().run(program), Fluid().run(program))


@settings(max_examples=100, deadline=None)
@given(programs(most_ranks=8, most_stages=8))
def test_bound_is_below_fluid(program: StepProgram) -> None:
    check_below(Bound().run(program), Fluid().run(program))


def test_one_flow_is_exact() -> None:
    flows = make_flows([12e6], [[0, 1]], source=[0], destination=[1], latency=3e-6)
    times = run(compute(1e-3, 0.0), exchange(flows, 2, setup=1e-6), capacity=[50e9, 25e9], ranks=2)
    assert times.leave_SG[1] == pytest.approx([1e-3 + 1e-6, 1e-3 + 1e-6 + 12e6 / 25e9 + 3e-6], **CLOSE)


def test_incast_is_exact() -> None:
    n = 9
    sends_SD = np.zeros((n, n))
    sends_SD[1:, 0] = 1e6
    times = run(exchange(switch_flows(sends_SD, latency=2e-6), n), capacity=[50e9] * 2 * n, ranks=n)
    assert times.step_time_s == pytest.approx((n - 1) * 1e6 / 50e9 + 2e-6, **CLOSE)


@pytest.mark.parametrize("barrier", [False, True])
def test_uniform_all_to_alls_are_exact_layer_after_layer(barrier: bool) -> None:
    n, layers = 8, 5
    flows = switch_flows(np.full((n, n), 1e6), latency=2e-6)
    stages = [exchange(flows, n, setup=1e-6, barrier=barrier), compute(*[5e-6] * n)] * layers
    times = run(*stages, capacity=[50e9] * 2 * n, ranks=n)
    assert times.step_time_s == pytest.approx(layers * ((n - 1) * 1e6 / 50e9 + 8e-6), **CLOSE)


def test_a_trunk_that_every_exchange_needs_is_never_idle() -> None:
    """One link carries two seconds of each exchange, from whichever ranks: no sharing can end five of them sooner."""
    flows = make_flows([1.0, 1.0], [[0], [0]], source=[0, 1], destination=[1, 0], latency=0.25)
    times = run(*[exchange(flows, 2)] * 5, capacity=[1.0], ranks=2)
    assert times.step_time_s == pytest.approx(10.25, **CLOSE)


def test_the_last_rank_still_has_to_send_everything() -> None:
    """Whoever leaves the hub's exchange last, at 3 s, then needs 2 s for its own port, and everybody waits for that."""
    n = 3
    hub, even = np.zeros((n, n)), np.full((n, n), 1.0)
    hub[0, 1:] = 1.5
    stages = exchange(switch_flows(hub), n), exchange(switch_flows(even), n), exchange(switch_flows(even * 1e-6), n)
    times = run(*stages, capacity=[1.0] * 2 * n, ranks=n)
    assert (times.leave_SG[2] >= 5.0).all()


def test_relay_is_exact() -> None:
    flows = make_flows(
        [8.0, 8.0, 8.0],
        [[0], [0], [1]],
        source=[0, 0, 1],
        destination=[1, 1, 2],
        waiter=[-1, -1, 2],
        parents=[[], [], [0, 1]],
        latency=0.125,
        delay=0.5,
        tail=0.25,
    )
    program = make_program(exchange(flows, 3), capacity=[2.0, 4.0], ranks=3)
    assert Bound().run(program).leave_SG[0, 2] == pytest.approx(8.0 + 0.125 + 0.25, **CLOSE)
    assert Fluid().run(program).leave_SG[0, 2] == pytest.approx(8.0 + 0.125 + 0.25, **CLOSE)


def test_a_busy_sender_is_felt_by_everybody_one_exchange_later() -> None:
    """Rank 0's port takes 3 s for all it sends, each receiver's flow 1 s: somebody leaves at 3 s, nobody knows who."""
    n = 4
    hub = np.zeros((n, n))
    hub[0, 1:] = 1.0
    everyone = np.full((n, n), 0.01)
    stages = exchange(switch_flows(hub), n), compute(*[0.5] * n), exchange(switch_flows(everyone), n)
    times = run(*stages, capacity=[1.0] * 2 * n, ranks=n)
    assert times.leave_SG[0] == pytest.approx([0.0, 1.0, 1.0, 1.0], **CLOSE)
    assert times.last_S[:2] == pytest.approx([3.0, 3.5], **CLOSE)
    # As everybody waits for everybody, and so for whoever came last with its 0.01 bytes.
    assert (times.leave_SG[2] >= 3.5).all()


def test_busy_counts_the_whole_time_that_a_port_needs() -> None:
    n = 3
    sends_SD = np.zeros((n, n))
    sends_SD[1:, 0] = 2.0
    times = run(exchange(switch_flows(sends_SD, latency=0.5), n, setup=0.25), capacity=[1.0] * 2 * n, ranks=n)
    assert times.leave_SG[0] == pytest.approx([4.75, 0.75, 0.75], **CLOSE)
    assert times.busy_SG[0] == pytest.approx([4.75, 0.75, 0.75], **CLOSE)


@settings(max_examples=60, deadline=None)
@given(programs())
def test_clocks_never_run_back_and_busy_fits_into_the_stay(program: StepProgram) -> None:
    times = Bound().run(program)
    assert (times.leave_SG >= times.enter_SG).all()
    assert (times.enter_SG[1:] == times.leave_SG[:-1]).all()
    assert (times.busy_SG >= 0).all()
    assert (times.busy_SG <= times.leave_SG - times.enter_SG + 1e-12 * times.step_time_s).all()
    assert (times.link_bytes_J == Fluid().run(program).link_bytes_J).all()


@settings(max_examples=60, deadline=None)
@given(programs(), st.integers(0, 2**32))
def test_renaming_ranks_links_and_flows_changes_nothing(program: StepProgram, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank_of = rng.permutation(program.n_ranks)
    renamed = renamed_program(program, rng, rank_of)
    for rung in (Bound(), Fluid()):
        before, after = rung.run(program), rung.run(renamed)
        slack = 1e-9 * before.step_time_s
        np.testing.assert_allclose(after.leave_SG[:, rank_of], before.leave_SG, rtol=1e-9, atol=slack)
        np.testing.assert_allclose(after.busy_SG[:, rank_of], before.busy_SG, rtol=1e-9, atol=slack)


def renamed_program(program: StepProgram, rng: np.random.Generator, rank_of: np.ndarray) -> StepProgram:
    """The same program with rank g called ``rank_of[g]``, and links and flows in another order."""
    link_of = rng.permutation(len(program.capacity_J))
    old_G, old_J = np.argsort(rank_of), np.argsort(link_of)
    stages: list[object] = []
    for stage in program.tasks:
        if not isinstance(stage, Exchange):
            stages.append(compute(*stage.seconds_R[old_G]))
            continue
        flows = reordered(stage.fill(), rng.permutation(stage.fill().n), link_of=link_of, rank_of=rank_of)
        groups = stage.group_R[old_G].tolist()
        stages.append(exchange(flows, program.n_ranks, setup=stage.setup_s, barrier=stage.barrier, groups=groups))
    return make_program(*stages, capacity=program.capacity_J[old_J], ranks=program.n_ranks)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(programs())
def test_more_latency_and_more_work_never_lower_the_bound(program: StepProgram) -> None:
    heavier: list[object] = []
    rng = np.random.default_rng(program.n_ranks)
    for stage in program.tasks:
        if isinstance(stage, Exchange):
            fields = {name: getattr(stage.fill(), name) for name in Flows.__dataclass_fields__}
            fields["latency_F"] = fields["latency_F"] + rng.exponential(0.1, stage.fill().n)
            groups = stage.group_R.tolist()
            heavier.append(
                exchange(Flows(**fields), program.n_ranks, setup=stage.setup_s, barrier=stage.barrier, groups=groups)
            )
        else:
            heavier.append(compute(*(stage.seconds_R + rng.exponential(0.1, program.n_ranks))))
    more = make_program(*heavier, capacity=program.capacity_J, ranks=program.n_ranks)  # type: ignore[arg-type]
    assert (Bound().run(more).leave_SG >= Bound().run(program).leave_SG * (1 - 1e-9)).all()


def test_same_program_same_bytes() -> None:
    program = random_program(np.random.default_rng(3), ranks=6, stages=6)
    first, second = Bound().run(program), Bound().run(program)
    for name in ("enter_SG", "leave_SG", "busy_SG", "link_bytes_J", "last_S"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
