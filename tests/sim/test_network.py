"""The fluid network: closed forms, max-min fairness against an exact account, and the bytes that cross each link."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim.network import RUNGS, Bound, Fluid, OpenFluid, deliver, find_rung, max_min_rates
from moecast.sim.program import Exchange, Flows, StepProgram
from moecast.topology import load_cluster
from tests.sim.network_cases import (
    cluster_flows,
    compute,
    exchange,
    make_flows,
    make_program,
    slow_max_min,
    switch_flows,
)
from tests.strategies_program import programs

CLOSE = {"rel": 1e-9, "abs": 0.0}


def finish(flows: Flows, capacity: list[float] | np.ndarray, start: float = 0.0) -> np.ndarray:
    return deliver(flows, np.full(flows.n, start), np.asarray(capacity, np.float64))


def test_rungs_are_named_and_say_what_they_are() -> None:
    assert [rung.name for rung in RUNGS] == ["bound", "fluid"]
    assert [rung.times_every_step for rung in RUNGS] == [True, False]
    assert all(type(rung).__doc__ for rung in RUNGS)


def test_one_flow_takes_its_bytes_over_its_slowest_link_and_its_latency() -> None:
    flows = make_flows([12e6], [[0, 1, 2]], latency=3e-6)
    assert finish(flows, [50e9, 25e9, 900e9], start=1e-3)[0] == pytest.approx(1e-3 + 12e6 / 25e9 + 3e-6, **CLOSE)


@pytest.mark.parametrize("n", [2, 7, 32])
def test_incast_shares_the_receivers_port(n: int) -> None:
    sends_SD = np.zeros((n, n))
    sends_SD[1:, 0] = 1e6
    flows = switch_flows(sends_SD, latency=2e-6)
    expected = (n - 1) * 1e6 / 50e9 + 2e-6
    assert finish(flows, [50e9] * 2 * n)[n::n] == pytest.approx(np.full(n - 1, expected), **CLOSE)


def test_permutation_runs_at_full_rate() -> None:
    n = 16
    sends_SD = np.zeros((n, n))
    sends_SD[np.arange(n), (np.arange(n) + 5) % n] = 3e6
    flows = switch_flows(sends_SD, latency=2e-6)
    assert finish(flows, [50e9] * 2 * n).max() == pytest.approx(3e6 / 50e9 + 2e-6, **CLOSE)


@pytest.mark.parametrize("n", [2, 8, 64])
def test_uniform_all_to_all_on_one_switch(n: int) -> None:
    bytes_per_rank = 7e6
    flows = switch_flows(np.full((n, n), bytes_per_rank / n), latency=2e-6)
    expected = (n - 1) / n * bytes_per_rank / 50e9 + 2e-6
    assert finish(flows, [50e9] * 2 * n).max() == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("fabric", ["single-switch", "leaf-spine:1,routing=spray,nodes-per-leaf=2"])
def test_uniform_all_to_all_between_nodes_with_ideal_spraying(fabric: str) -> None:
    cluster = load_cluster("dgx-h200", nodes=8, fabric=fabric)
    ranks = np.arange(0, cluster.n_gpus, 8)  # one GPU of each node: all traffic goes through the NICs
    sends_SD = np.zeros((cluster.n_gpus, cluster.n_gpus))
    sends_SD[np.ix_(ranks, ranks)] = 4e6 / len(ranks)
    flows = cluster_flows(cluster, sends_SD)
    nic_Bps = cluster.capacity_J[cluster.link_kind_J.index("nic-out")]
    end_F, sent = finish(flows, cluster.capacity_J), flows.bytes_F > 0
    expected = (len(ranks) - 1) / len(ranks) * 4e6 / nic_Bps
    assert (end_F - flows.latency_F)[sent].max() == pytest.approx(expected, **CLOSE)


def test_hashed_paths_give_a_distribution_over_seeds() -> None:
    sends_SD = np.full((32, 32), 4e6 / 32)
    ends = {}
    for routing, seeds in {"spray": 1, "ecmp": 12}.items():
        cluster = load_cluster("dgx-h200", nodes=4, fabric=f"leaf-spine:1,routing={routing},nodes-per-leaf=1")
        flows = [cluster_flows(cluster, sends_SD, seed=seed) for seed in range(seeds)]
        ends[routing] = [finish(f, cluster.capacity_J).max() for f in flows]
    nic_Bps = cluster.capacity_J[cluster.link_kind_J.index("nic-out")]
    ideal = 24 / 32 * 4e6 / nic_Bps + flows[0].latency_F.max()  # 8 of 32 GPUs are reached by NVLink
    assert ends["spray"][0] == pytest.approx(ideal, **CLOSE)
    assert len(set(ends["ecmp"])) > 3
    assert min(ends["ecmp"]) >= ideal
    assert np.mean(ends["ecmp"]) > 1.1 * ideal


def test_a_short_flow_hands_its_share_on() -> None:
    flows = make_flows([1.0, 3.0], [[0], [0]])
    assert finish(flows, [1.0]) == pytest.approx([2.0, 4.0], **CLOSE)


def test_a_late_flow_takes_its_share_when_it_starts() -> None:
    flows = make_flows([4.0, 1.0], [[0], [0]])
    assert deliver(flows, np.array([0.0, 1.0]), np.array([1.0])) == pytest.approx([5.0, 3.0], **CLOSE)


def test_a_sprayed_flow_takes_its_share_of_each_link() -> None:
    flows = make_flows([8.0, 1.0], [[0, 1], [0]], share=0.5)
    assert finish(flows, [1.0, 1.0]) == pytest.approx([4.5, 1.0], **CLOSE)


def test_flows_without_bytes_or_links_take_their_latency() -> None:
    flows = make_flows([0.0, 9.0, 2.0], [[0], [], [0]], latency=[0.5, 0.25, 0.0])
    assert finish(flows, [1.0], start=1.0) == pytest.approx([1.5, 1.25, 3.0], **CLOSE)


@pytest.mark.parametrize(
    ("first_Bps", "second_Bps"), [(2.0, 4.0), (4.0, 2.0)], ids=["slow first leg", "slow second leg"]
)
def test_relay_takes_the_slower_leg_and_one_chunk(first_Bps: float, second_Bps: float) -> None:
    flows = make_flows([8.0, 8.0], [[0], [1]], parents=[[], [0]], latency=0.125, delay=0.5, tail=0.25)
    first = 8.0 / first_Bps + 0.125
    second = max(0.5 + 8.0 / second_Bps + 0.125, first + 0.25)
    assert finish(flows, [first_Bps, second_Bps]) == pytest.approx([first, second], **CLOSE)


def test_relay_chain_adds_a_delay_and_a_tail_per_hop() -> None:
    hops = 5
    flows = make_flows(
        [6.0] * hops,
        [[j] for j in range(hops)],
        parents=[[h - 1] if h else [] for h in range(hops)],
        delay=0.5,
        tail=0.25,
    )
    slow_first = finish(flows, [1.0] + [3.0] * (hops - 1))
    assert slow_first == pytest.approx([6.0 + 0.25 * h for h in range(hops)], **CLOSE)
    slow_last = finish(flows, [3.0] * (hops - 1) + [1.0])
    assert slow_last[-1] == pytest.approx(0.5 * (hops - 1) + 6.0, **CLOSE)


def test_a_fed_flow_waits_for_the_last_of_its_parents() -> None:
    flows = make_flows([1.0, 1.0, 1.0], [[0], [1], [2]], parents=[[], [], [0, 1]], delay=0.5, tail=0.25)
    ends = deliver(flows, np.array([0.0, 4.0, 99.0]), np.array([1.0, 1.0, 1.0]))
    assert ends == pytest.approx([1.0, 5.0, 5.5], **CLOSE)


def test_flows_join_an_open_network_at_any_time_and_groups_are_told_when_they_end() -> None:
    network = OpenFluid(np.array([2.0]))
    first, group = network.add(make_flows([4.0, 2.0], [[0], [0]], latency=0.5), np.array([0, 1]), 2)
    network.start(first, np.array([0]), np.array([1.0]))
    assert network.advance(2.0) == []
    assert network.clock_s == 2.0
    assert network.times(first, 2)[0].tolist() == [1.0, np.inf]
    second, late = network.add(make_flows([1.0], [[0]]), np.array([0]), 1)
    network.start(second, np.array([0]), np.array([2.0]))
    network.start(first, np.array([1]), np.array([2.0]))
    assert network.advance(2.5) == []
    assert network.rates(first, 2).tolist() == pytest.approx([2.0 / 3, 2.0 / 3], **CLOSE)
    assert network.advance(9.0) == [(late, pytest.approx(3.5, **CLOSE))]
    assert network.clock_s == pytest.approx(3.5, **CLOSE)
    ends = dict(network.advance(9.0))
    assert ends == {group: pytest.approx(5.0, **CLOSE), group + 1: pytest.approx(5.0, **CLOSE)}
    assert network.next_event_s == np.inf


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"bytes_F": np.array([-1.0])}, "bytes_F"),
        ({"bytes_F": np.array([np.nan])}, "bytes_F"),
        ({"latency_F": np.array([-1.0])}, "latency_F"),
        ({"link_X": np.array([3], np.int32)}, "link_X"),
        ({"share_X": np.array([0.0])}, "share_X"),
        ({"share_X": np.array([1.0, 1.0])}, "share_X"),
        ({"offsets_F1": np.array([0, 2])}, "offsets_F1"),
        ({"waiter_F": np.array([-2], np.int32)}, "waiter_F"),
        ({"latency_F": np.array([0.0, 0.0])}, "one length"),
        ({"parent_offsets_F1": np.array([0, 1]), "parent_R": np.array([5], np.int32)}, "parent_R"),
    ],
)
def test_unusable_flows_are_refused_by_name(change: dict[str, np.ndarray], rule: str) -> None:
    good = make_flows([1.0], [[0]])
    fields = {name: getattr(good, name) for name in Flows.__dataclass_fields__}
    with pytest.raises(ValueError, match=rule):
        finish(Flows(**fields | change), [1.0])


def test_flows_that_feed_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="feed itself"):
        finish(make_flows([1.0, 1.0, 1.0], [[0]] * 3, parents=[[], [2], [1]]), [1.0])


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[dict[int, Fraction]], list[Fraction]]:
    """Flows over a few links, with shares and capacities that make ties."""
    links = draw(st.integers(1, 6))
    capacity = [Fraction(draw(st.integers(1, 6))) for _ in range(links)]
    share = st.sampled_from([Fraction(1), Fraction(1, 2), Fraction(1, 64), Fraction(3)])
    route = st.dictionaries(st.integers(0, links - 1), share, min_size=1, max_size=links)
    return draw(st.lists(route, min_size=1, max_size=12)), capacity


@settings(max_examples=300, deadline=None)
@given(networks())
def test_rates_are_those_of_an_exact_account(case: tuple[list[dict[int, Fraction]], list[Fraction]]) -> None:
    routes, capacity = case
    rates = max_min_rates(
        np.cumsum([0, *(len(route) for route in routes)]),
        np.array([j for route in routes for j in route], np.int32),
        np.array([float(share) for route in routes for share in route.values()]),
        np.array([float(c) for c in capacity]),
    )
    assert rates == pytest.approx([float(rate) for rate in slow_max_min(routes, capacity)], rel=1e-12)


def test_rates_stay_exact_where_shares_differ_by_a_million() -> None:
    n = 1000
    share_X = np.where(np.arange(n) == 7, 1e-6, 1.0)
    link_X = np.where(np.arange(2 * n) % 2, np.arange(2 * n) // 2 + 1, 0).astype(np.int32)
    capacity_J = np.concatenate(([100.0], np.full(n, 0.05)))
    capacity_J[8] = 1e9  # the light flow is held by the shared link alone
    shares = np.stack((share_X, np.ones(n)), axis=1).ravel()
    rates = max_min_rates(np.arange(0, 2 * n + 1, 2), link_X, shares, capacity_J)
    others = np.delete(rates, 7)
    assert others == pytest.approx(np.full(n - 1, 0.05), rel=1e-12)
    assert rates[7] == pytest.approx((100.0 - 0.05 * (n - 1)) / 1e-6, rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(programs(most_stages=1))
def test_every_event_keeps_capacity_fairness_and_bytes(program: StepProgram) -> None:
    for stage in program.tasks:
        if isinstance(stage, Exchange):
            follow(stage.fill(), program.capacity_J)


@pytest.mark.parametrize("tolerance", [0.0, 0.003, 0.02, 0.1])
def test_hundreds_of_events_leave_no_rounding_behind(tolerance: float) -> None:
    """More flows than a tolerance leaves to single events, which start apart, so that windows are cut short."""
    n = 18 if tolerance == 0 else 24
    sends_SD = np.random.default_rng(1).gamma(1.0, 1.0, (n, n))
    follow(switch_flows(sends_SD, latency=0.1), np.random.default_rng(2).uniform(1.0, 3.0, 2 * n), tolerance=tolerance)


def test_shares_of_all_sizes_keep_capacity_within_a_tolerance() -> None:
    n, rng = 500, np.random.default_rng(3)
    links = [rng.choice(12, 3, replace=False).tolist() for _ in range(n)]
    flows = make_flows(rng.gamma(1.0, 1.0, n).tolist(), links, share=10.0 ** rng.uniform(-6, 2, 3 * n))
    follow(flows, rng.uniform(1.0, 3.0, 12), tolerance=0.02)


@settings(max_examples=60, deadline=None)
@given(programs(most_stages=1), st.sampled_from([0.003, 0.03, 0.1]))
def test_within_a_tolerance_links_keep_their_capacity_and_bytes_arrive(program: StepProgram, tolerance: float) -> None:
    for stage in program.tasks:
        if isinstance(stage, Exchange):
            follow(stage.fill(), program.capacity_J, tolerance=tolerance)


@settings(max_examples=100, deadline=None)
@given(programs(), st.sampled_from([0.003, 0.02, 0.1]))
def test_few_flows_are_followed_exactly_within_a_tolerance(program: StepProgram, tolerance: float) -> None:
    exact, found = (rung.run(program).leave_SG for rung in (Fluid(), Fluid(tolerance=tolerance)))
    assert found == pytest.approx(exact, **CLOSE)


@pytest.mark.parametrize("tolerance", [0.003, 0.02, 0.1])
def test_a_tolerance_bounds_the_error_of_a_step(tolerance: float) -> None:
    """Ranks that enter apart, and never a leave before the bound, which holds for any shares of the links."""
    n, rng = 24, np.random.default_rng(4)
    capacity_J = rng.uniform(1.0, 1.5, 2 * n)
    sends = [switch_flows(rng.lognormal(0.0, 1.0, (n, n)), latency=0.1) for _ in range(3)]
    tasks = [task for flows in sends for task in (compute(*rng.uniform(0, 9, n)), exchange(flows, n, setup=0.1))]
    program = make_program(*tasks, capacity=capacity_J, ranks=n)
    least, exact, found = (rung.run(program).leave_SG for rung in (Bound(), Fluid(), Fluid(tolerance=tolerance)))
    assert (least <= found * (1 + 1e-12)).all()
    assert found[-1].max() == pytest.approx(exact[-1].max(), rel=tolerance)
    assert np.abs(found / exact - 1).max() <= 2 * tolerance


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.002, 0.1))
def test_windows_end_near_what_is_exact_whoever_starts_when(seed: int, tolerance: float) -> None:
    """More flows than are followed one by one, over ports of different speeds: the last end, and ranks in the mean."""
    rng = np.random.default_rng(seed)
    n, sigma, apart = int(rng.integers(17, 28)), rng.uniform(0, 1.5), rng.uniform(0, 20)
    sends = [switch_flows(rng.lognormal(0.0, sigma, (n, n)), latency=0.1) for _ in range(int(rng.integers(1, 4)))]
    tasks = [task for flows in sends for task in (compute(*rng.uniform(0, apart, n)), exchange(flows, n, setup=0.1))]
    program = make_program(*tasks, capacity=rng.uniform(0.5, 2.0, 2 * n), ranks=n)
    least, exact, found = (rung.run(program).leave_SG for rung in (Bound(), Fluid(), Fluid(tolerance=tolerance)))
    assert (least <= found * (1 + 1e-12)).all()
    assert found[-1].max() == pytest.approx(exact[-1].max(), rel=4 * tolerance)
    assert np.abs(found / np.maximum(exact, 1e-9) - 1).mean() <= 2 * tolerance


@pytest.mark.parametrize("tolerance", [0.003, 0.01, 0.05])
@pytest.mark.parametrize("kind", ["sizes that all differ", "popular ranks"])
def test_the_error_on_an_uneven_exchange(tolerance: float, kind: str) -> None:
    cluster, rng = load_cluster("dgx-h200", nodes=4, fabric="leaf-spine:2"), np.random.default_rng(0)
    popular = rng.poisson(64 * rng.gamma(4.0, 0.25, (1, 32)), (32, 32))
    sends_SD = popular * 7168.0 if kind == "popular ranks" else rng.lognormal(0, 1, (32, 32)) * 1e6
    flows, start_F = cluster_flows(cluster, sends_SD), np.zeros(32 * 32)
    exact_D, found_D = (
        deliver(flows, start_F, cluster.capacity_J, tolerance=each).reshape(32, 32).max(0) for each in (0.0, tolerance)
    )
    assert found_D.max() == pytest.approx(exact_D.max(), rel=tolerance / 4)
    assert np.abs(found_D / exact_D - 1).mean() <= tolerance / 2
    assert np.abs(found_D / exact_D - 1).max() <= tolerance


@pytest.mark.parametrize("name", ["fluid:", "fluid:1", "fluid:-1%", "fluid:11%", "fluid:nan%", "fluid:x%", "bound:1%"])
def test_rungs_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(MoecastError, match="network = "):
        find_rung(name)


def test_rungs_are_found_by_the_names_they_give() -> None:
    for rung in (*RUNGS, Fluid(tolerance=0.003)):
        assert find_rung(rung.name) == rung
        assert find_rung(rung) is rung


def follow(flows: Flows, capacity_J: np.ndarray, *, tolerance: float = 0.0) -> None:
    """Go from event to event: no link above its capacity, rates max-min fair, and in the end all bytes over.

    With a tolerance rates are not those of the flows in transit, but no link is above its capacity.
    """
    start_F = np.random.default_rng(flows.n).choice([0.0, 0.0, 1.0, 2.5], flows.n)
    network = OpenFluid(capacity_J, tolerance=tolerance)
    first, _ = network.add(flows, np.full(flows.n, -1), 0)
    roots = np.flatnonzero(np.diff(flows.parent_offsets_F1) == 0)
    network.start(first, roots, start_F[roots])
    flow_X = np.repeat(np.arange(flows.n), np.diff(flows.offsets_F1))
    moved_F, clock = np.zeros(flows.n), 0.0
    while network.next_event_s < np.inf:
        rate_F = network.rates(first, flows.n)
        moved_F += rate_F * (network.next_event_s - clock)
        clock = network.next_event_s
        if tolerance:
            used_J = np.bincount(flows.link_X, rate_F[flow_X] * flows.share_X, len(capacity_J))
            assert (used_J <= capacity_J * (1 + 1e-9)).all()
        else:
            check_fair(rate_F, flow_X, flows.link_X, flows.share_X, capacity_J)
        network.advance(np.nextafter(clock, np.inf))
        assert network.clock_s >= clock
    begin_F, end_F = network.times(first, flows.n)
    assert np.isfinite(end_F).all()
    assert (begin_F >= start_F)[roots].all()
    assert (end_F >= begin_F + flows.latency_F).all()
    linked = np.diff(flows.offsets_F1) > 0
    np.testing.assert_allclose(moved_F[linked], flows.bytes_F[linked], rtol=1e-9, atol=1e-9)


def check_fair(
    rate_F: np.ndarray, flow_X: np.ndarray, link_X: np.ndarray, share_X: np.ndarray, capacity_J: np.ndarray
) -> None:
    """Every flow in transit has a full link on which no flow is faster, and no link is over-full."""
    load_J, fastest_J = np.zeros(len(capacity_J)), np.zeros(len(capacity_J))
    np.add.at(load_J, link_X, rate_F[flow_X] * share_X)
    np.maximum.at(fastest_J, link_X, rate_F[flow_X])
    assert (load_J <= capacity_J * (1 + 1e-9)).all()
    holds_X = (load_J >= capacity_J * (1 - 1e-9))[link_X] & (rate_F[flow_X] >= fastest_J[link_X] * (1 - 1e-9))
    held = np.zeros(len(rate_F), np.bool_)
    held[flow_X[holds_X]] = True
    assert (held | (rate_F == 0)).all()
