"""Flows of the five dispatch modes, against what docs/design.md, 8 says of them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings

from moecast.sim import DISPATCH_MODES, MODES, Flows, PlacedModel, Plan, Sites, collective_for, count_traffic, mode_of
from moecast.sim.collectives import DEFAULT_MODE
from moecast.sim.collectives.template import CHUNK_COPIES
from moecast.sim.traffic import LayerTraffic
from moecast.topology import Cluster, load_cluster
from tests.sim.plan_cases import Question, questions

COPY_BYTES = 1000.0


def exchanges(question: Question, name: str) -> tuple[Sites, LayerTraffic, Flows, Flows]:
    """The last layer's traffic, dispatch and combine under a mode."""
    plan = question.plan.with_(dispatch=name)
    layout = Sites.of(question.cluster, plan)
    mode = mode_of(name, "prefill")
    traffic = count_traffic(
        plan, layout, question.trace.experts_TLK, question.step.token_T, question.step.source_T, stay=mode.stay
    ).layer(plan.layers - 1)
    collective = collective_for(mode, layout)
    dispatch = collective.dispatch(layout, mode, COPY_BYTES).fill(mode.dispatch_counts(traffic))
    combine = collective.combine(layout, mode, COPY_BYTES).fill(mode.combine_counts(traffic))
    return layout, traffic, dispatch, combine


def by_pair(flows: Flows, keep_F: np.ndarray | None = None) -> dict[tuple[int, int], float]:
    """Bytes from rank to rank, flows inside a rank left out."""
    total: dict[tuple[int, int], float] = defaultdict(float)
    for flow in range(flows.n) if keep_F is None else np.flatnonzero(keep_F):
        pair = int(flows.source_rank_F[flow]), int(flows.destination_rank_F[flow])
        if pair[0] != pair[1]:
            total[pair] += flows.bytes_F[flow]
    return dict(total)


def off_diagonal(counts_SD: np.ndarray, *, turned: bool = False) -> dict[tuple[int, int], float]:
    return {
        ((int(d), int(s)) if turned else (int(s), int(d))): counts_SD[s, d] * COPY_BYTES
        for s, d in np.argwhere(counts_SD)
        if s != d
    }


@settings(max_examples=60, deadline=None)
@given(questions(rules=("round_robin",)))
@pytest.mark.parametrize("name", ["per_choice", "nccl", "per_rank"])
def test_flat_modes_send_straight(name: str, question: Question) -> None:
    layout, traffic, dispatch, combine = exchanges(question, name)
    counts_SD = layout.to_ranks(traffic.copies_SM if name == "per_rank" else traffic.choices_SM)
    assert by_pair(dispatch) == off_diagonal(counts_SD)
    assert by_pair(combine) == off_diagonal(counts_SD, turned=True)
    for flows in (dispatch, combine):
        np.testing.assert_array_equal(flows.waiter_F, flows.destination_rank_F)
        assert not len(flows.parent_R)
        assert (flows.bytes_F > 0).all()


@settings(max_examples=60, deadline=None)
@given(questions(rules=("round_robin",)))
@pytest.mark.parametrize("name", ["per_domain", "stay"])
def test_relayed_modes_cross_to_a_domain_once(name: str, question: Question) -> None:
    layout, traffic, dispatch, combine = exchanges(question, name)
    home_domain_S = layout.domain_G
    relay_SN = layout.to_domains(layout.relay_SA + 1) - 1
    ways = ((dispatch, traffic.copies_SM, traffic.domain_copies_SA, False),
            (combine, traffic.return_copies_SM, traffic.return_domain_copies_SA, True))  # fmt: skip
    for flows, copies_SM, domain_copies_SA, turned in ways:
        copies_SD, domain_copies_SN = layout.to_ranks(copies_SM), layout.to_domains(domain_copies_SA)
        expected: dict[tuple[int, int], float] = defaultdict(float)

        def send(source: int, destination: int, copies: int, turned=turned, expected=expected) -> None:
            if copies and source != destination:
                expected[(destination, source) if turned else (source, destination)] += copies * COPY_BYTES

        for source, domain in np.argwhere(domain_copies_SN):
            servers = np.flatnonzero((copies_SD[source] > 0) & (layout.domain_G == domain))
            relay = relay_SN[source, domain]
            if home_domain_S[source] != domain:
                send(source, relay, domain_copies_SN[source, domain])
            for server in servers:
                send(source if home_domain_S[source] == domain else relay, server, copies_SD[source, server])
        assert by_pair(flows) == dict(expected)
        crosses_F = layout.domain_G[flows.source_rank_F] != layout.domain_G[flows.destination_rank_F]
        away = domain_copies_SN.sum() - domain_copies_SN[np.arange(layout.n_ranks), home_domain_S].sum()
        assert flows.bytes_F[crosses_F].sum() == away * COPY_BYTES


@settings(max_examples=60, deadline=None)
@given(questions(rules=("round_robin",)))
@pytest.mark.parametrize("name", ["per_domain", "stay"])
def test_relays_are_fed_before_they_pass_on(name: str, question: Question) -> None:
    """Every second leg is fed by a first leg that ends where it begins, and by its relay being there."""
    layout, _, dispatch, combine = exchanges(question, name)
    for flows, first_leg_crosses in ((dispatch, True), (combine, False)):
        parents = [
            flows.parent_R[flows.parent_offsets_F1[f] : flows.parent_offsets_F1[f + 1]].tolist() for f in range(flows.n)
        ]
        crosses_F = layout.domain_G[flows.source_rank_F] != layout.domain_G[flows.destination_rank_F]
        for flow, family in enumerate(parents):
            for parent in family:
                assert flows.destination_rank_F[parent] == flows.source_rank_F[flow]
                assert not parents[parent]
            if family:
                own = [p for p in family if flows.source_rank_F[p] == flows.destination_rank_F[p]]
                assert len(own) == 1
                assert not flows.bytes_F[own[0]]
        if not first_leg_crosses:
            assert all(bool(family) == bool(crosses_F[f]) for f, family in enumerate(parents) if flows.bytes_F[f])
        awaited = flows.waiter_F >= 0
        np.testing.assert_array_equal(flows.waiter_F[awaited], flows.destination_rank_F[awaited])


@settings(max_examples=60, deadline=None)
@given(questions())
@pytest.mark.parametrize("name", DISPATCH_MODES)
def test_flows_stay_in_their_group_and_on_real_paths(name: str, question: Question) -> None:
    layout, _, dispatch, combine = exchanges(question, name)
    cluster = question.cluster
    for flows in (dispatch, combine):
        np.testing.assert_array_equal(layout.group_G[flows.source_rank_F], layout.group_G[flows.destination_rank_F])
        routes = cluster.routes(layout.gpu_G[flows.source_rank_F], layout.gpu_G[flows.destination_rank_F])
        np.testing.assert_array_equal(flows.latency_F, routes.latency_F)
        real_X = flows.link_X < len(cluster.links)
        np.testing.assert_array_equal(flows.link_X[real_X], routes.link_X)
        np.testing.assert_array_equal(flows.share_X[real_X], routes.share_X)


@settings(max_examples=40, deadline=None)
@given(questions())
def test_each_message_costs_its_sender_time(question: Question) -> None:
    """copies x message_s + bytes / rate, over NVLink and over the NIC apart."""
    layout, traffic, dispatch, combine = exchanges(question, "per_choice")
    cluster, n_links, n_gpus = question.cluster, len(question.cluster.links), question.cluster.n_gpus
    rate = {"NVLink": capacity(cluster, "nvlink-out"), "NIC": capacity(cluster, "pcie-out", "nic-out")}
    near_SD = layout.domain_G[:, None] == layout.domain_G[None, :]
    away_SD = layout.to_ranks(traffic.choices_SM) * ~np.eye(layout.n_ranks, dtype=bool)
    for flows, counts_SD in ((dispatch, away_SD), (combine, away_SD.T)):
        units_X = np.repeat(flows.bytes_F, np.diff(flows.offsets_F1)) * flows.share_X
        busy_J = np.bincount(flows.link_X, units_X, n_links + 2 * n_gpus)
        for way, copies_G in (("NVLink", (counts_SD * near_SD).sum(1)), ("NIC", (counts_SD * ~near_SD).sum(1))):
            first = n_links if way == "NVLink" else n_links + n_gpus
            each_s = cluster.hardware.message_s + COPY_BYTES / rate[way]
            np.testing.assert_allclose(busy_J[first + layout.gpu_G], copies_G * each_s, rtol=1e-12)


def capacity(cluster: Cluster, *kinds: str) -> float:
    pairs = zip(cluster.capacity_J, cluster.link_kind_J, strict=True)
    return float(min((capacity for capacity, kind in pairs if kind in kinds), default=np.inf))


@settings(max_examples=30, deadline=None)
@given(questions())
@pytest.mark.parametrize("name", [name for name in DISPATCH_MODES if name != "per_choice"])
def test_other_kernels_send_no_messages(name: str, question: Question) -> None:
    _, _, dispatch, combine = exchanges(question, name)
    for flows in (dispatch, combine):
        assert (flows.link_X < len(question.cluster.links)).all()


def test_per_domain_in_one_domain_is_per_rank() -> None:
    cluster = load_cluster("dgx-h200")
    layout = Sites.of(cluster, Plan.contiguous(layers=1, experts=8, choices=1, ep=8))
    assert collective_for(mode_of("per_domain", "prefill"), layout).name == "flat"
    two = Sites.of(load_cluster("dgx-h200", nodes=2), Plan.contiguous(layers=1, experts=16, choices=1, ep=16))
    assert collective_for(mode_of("per_domain", "prefill"), two).name == "hierarchical"


def test_relay_has_the_same_index_or_the_next_best() -> None:
    cluster = load_cluster("dgx-h200", nodes=2)
    plan = Plan.contiguous(layers=1, experts=5, choices=1, ep=5).with_(gpu_of_rank=(0, 1, 2, 9, 10))
    sites = Sites.of(cluster, plan)
    relay_SN = sites.to_domains(sites.relay_SA + 1) - 1
    assert relay_SN.tolist() == [
        [0, 3],  # index 0 is not in domain 1: the (0 mod 2)-th of its ranks
        [1, 3],  # GPU 1 -> GPU 9
        [2, 4],
        [1, 3],
        [2, 4],
    ]


def test_second_leg_starts_one_chunk_later() -> None:
    """One flow of 100 copies from GPU 0 to GPU 9, relayed by GPU 8."""
    cluster = load_cluster("dgx-h200", nodes=2, fabric="single-switch")
    plan = Plan.contiguous(layers=1, experts=3, choices=1, ep=3).with_(gpu_of_rank=(0, 8, 9))
    layout = Sites.of(cluster, plan)
    mode = mode_of("per_domain", "prefill")
    traffic = count_traffic(
        plan, layout, np.full((1, 1, 1), 2, np.uint16), np.zeros(100, np.int64), np.zeros(100, np.int32)
    ).layer(0)
    flows = collective_for(mode, layout).dispatch(layout, mode, COPY_BYTES).fill(mode.dispatch_counts(traffic))
    nic_Bps, nvlink_Bps = (
        min(capacity for capacity, kind in zip(cluster.capacity_J, cluster.link_kind_J, strict=True) if kind in kinds)
        for kinds in (("nic-out", "pcie-out"), ("nvlink-out",))
    )
    [fan] = np.flatnonzero(flows.destination_rank_F == 2)[flows.bytes_F[flows.destination_rank_F == 2] > 0]
    far = int(np.flatnonzero((flows.source_rank_F == 0) & (flows.destination_rank_F == 1))[0])
    chunk = CHUNK_COPIES * COPY_BYTES
    assert flows.bytes_F[[far, fan]].tolist() == [100 * COPY_BYTES, 100 * COPY_BYTES]
    assert flows.feed_delay_F[fan] == pytest.approx(chunk / nic_Bps + flows.latency_F[far], rel=1e-12)
    assert flows.feed_tail_F[fan] == pytest.approx(chunk / nvlink_Bps + flows.latency_F[fan], rel=1e-12)
    assert flows.waiter_F[far] == -1  # none of the copies is for the relay


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_default_mode_of_a_phase(phase: str) -> None:
    assert mode_of(None, phase).name == DEFAULT_MODE[phase]


def test_the_list_of_modes_is_the_plans() -> None:
    assert tuple(mode.name for mode in MODES) == DISPATCH_MODES
    with pytest.raises(ValueError, match="one of per_choice"):
        mode_of("telepathy", "prefill")


@settings(max_examples=30, deadline=None)
@given(questions())
def test_every_mode_is_carried(question: Question) -> None:
    for name in DISPATCH_MODES:
        placed = PlacedModel.of(question.cluster, question.model, question.plan.with_(dispatch=name), phase="prefill")
        assert placed.mode.name == name
