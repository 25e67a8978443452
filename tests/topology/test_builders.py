"""Builders against closed forms: counts, oversubscription, bisection."""

from collections import Counter
from dataclasses import replace
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.topology import Fabric, Recipe, load_cluster, parse_fabric
from moecast.topology.measures import bisection_Bps, measure, oversubscription
from tests.topology.clusters import DOMAIN, HARDWARE, build

NIC, NVLINK = DOMAIN.nic_Bps, DOMAIN.nvlink_Bps


@given(st.integers(2, 9), st.integers(1, 4), st.sampled_from([1.0, 1.25, 2.0, 3.0, 5.5, 40.0]))
@settings(deadline=None, max_examples=40)
def test_a_full_leaf_is_oversubscribed_exactly(n: int, per_leaf: int, ratio: float) -> None:
    cluster = build("leaf-spine", n, oversubscription=ratio, nodes_per_leaf=per_leaf)
    leaves = ceil(n / min(n, per_leaf))
    counts = Counter(node.kind for node in cluster.nodes)
    assert counts["leaf"] == leaves
    if leaves == 1:
        assert counts["spine"] == 0
        assert oversubscription(cluster) == 1.0
    else:
        assert counts["spine"] == ceil(8 * per_leaf / ratio)
        assert oversubscription(cluster) == pytest.approx(ratio, rel=1e-12)


@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from([1.0, 1.5, 2.0, 4.0]))
@settings(deadline=None, max_examples=40)
def test_bisection_of_leaf_spine_is_half_the_uplinks(half: int, per_leaf: int, ratio: float) -> None:
    n = 2 * half * per_leaf
    cluster = build("leaf-spine", n, oversubscription=ratio, nodes_per_leaf=per_leaf)
    assert bisection_Bps(cluster) == pytest.approx(n // 2 * 8 * NIC / ratio, rel=1e-9)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 4.0])
def test_bisection_of_one_rail_pod_needs_no_spine(ratio: float) -> None:
    cluster = build("rail", 4, oversubscription=ratio, nodes_per_leaf=4)
    assert oversubscription(cluster) == pytest.approx(ratio)
    assert bisection_Bps(cluster) == pytest.approx(16 * NIC, rel=1e-9)


def test_bisection_of_two_rail_pods_is_what_the_spines_carry() -> None:
    cluster = build("rail", 8, oversubscription=2, nodes_per_leaf=4)
    assert bisection_Bps(cluster) == pytest.approx(32 * NIC / 2, rel=1e-9)


def test_bisection_of_a_single_switch_and_of_one_domain() -> None:
    assert bisection_Bps(build("single-switch", 4)) == pytest.approx(16 * NIC, rel=1e-9)
    assert bisection_Bps(load_cluster("dgx-h200")) == pytest.approx(4 * 370e9, rel=1e-9)
    assert bisection_Bps(build("single-switch", 1, domain=replace(DOMAIN, gpus_per_host=1, nics_per_host=1))) == 0.0


def test_an_odd_number_of_domains_is_cut_between_domains() -> None:
    measures = measure(build("single-switch", 3))
    assert measures.bisection_Bps == pytest.approx(8 * NIC)
    assert measures.bisection_per_gpu_Bps == pytest.approx(NIC)


def test_neighbouring_gpus_share_nics() -> None:
    cluster = build("single-switch", 2, domain=replace(DOMAIN, nics_per_host=2))
    wires = [(link.source, link.destination) for link in cluster.links if link.kind == "pcie-out"]
    assert wires[:8] == [(f"node0/gpu{i}", f"node0/nic{i // 4}") for i in range(8)]
    assert bisection_Bps(cluster) == pytest.approx(2 * NIC)


def test_a_domain_of_many_hosts_is_one_nvlink_domain() -> None:
    cluster = load_cluster("gb200-nvl72", nodes=2, fabric="leaf-spine:2")
    assert (cluster.n_gpus, cluster.n_nodes, cluster.n_domains) == (144, 36, 2)
    routes = cluster.routes([0, 0], [71, 72])
    assert [cluster.link_kind_J[j] for j in routes.link_X[:2]] == ["nvlink-out", "nvlink-in"]
    assert routes.offsets_F1[1] == 2
    assert cluster.gpu_at(1, 71) == 143


def test_four_nodes_cross_the_spines_by_default() -> None:
    cluster = load_cluster("dgx-h200", nodes=4, fabric="leaf-spine:2")
    assert Counter(node.kind for node in cluster.nodes) == {"gpu": 32, "nic": 32, "nvswitch": 4, "leaf": 2, "spine": 8}


@pytest.mark.parametrize(
    ("text", "fabric"),
    [
        ("leaf-spine:2", Fabric(shape="leaf-spine", oversubscription=2)),
        ("leaf-spine:3:1", Fabric(shape="leaf-spine", oversubscription=3)),
        ("leaf-spine", Fabric(shape="leaf-spine")),
        ("rail:1.5", Fabric(shape="rail", oversubscription=1.5)),
        ("single-switch", Fabric(shape="single-switch")),
        ("rail:1, routing=ecmp, nodes-per-leaf=4", Fabric(shape="rail", routing="ecmp", nodes_per_leaf=4)),
    ],
)
def test_fabrics_are_read_and_written(text: str, fabric: Fabric) -> None:
    assert parse_fabric(text) == fabric
    assert parse_fabric(str(fabric)) == fabric


@pytest.mark.parametrize(
    "text",
    ["", "leaf", "leaf-spine:", "leaf-spine:0", "leaf-spine:-2", "leaf-spine:x", "leaf-spine:inf", "leaf-spine:nan"],
)
def test_shapes_and_ratios_that_cannot_be(text: str) -> None:
    with pytest.raises(MoecastError, match="fabric"):
        parse_fabric(text)


@pytest.mark.parametrize(
    "text",
    [
        "single-switch:2",
        "rail:1,routing=guess",
        "rail:1,speed=3",
        "rail:1,nodes-per-leaf",
        "rail:1,nodes-per-leaf=0",
        "rail:1,nodes-per-leaf=inf",
        "rail:1,nodes-per-leaf=2.5",
        "rail:1,routing=ecmp,routing=spray",
    ],
)
def test_options_that_cannot_be(text: str) -> None:
    with pytest.raises(MoecastError, match="fabric"):
        parse_fabric(text)


@pytest.mark.parametrize(
    ("cluster", "options", "match"),
    [
        ("dgx-h2", {}, "no such preset; there are dgx-h100"),
        ("dgx-h200", {"nodes": 0}, "nodes = 0: must be at least 1"),
        ("dgx-h200", {"nodes": 10**9}, "more than the 16384"),
        ("dgx-h200", {"fabric": "mesh"}, "fabric = 'mesh'"),
    ],
)
def test_bad_arguments_are_one_line(cluster: str, options: dict, match: str) -> None:
    with pytest.raises(MoecastError, match=match) as caught:
        load_cluster(cluster, **options)
    assert "\n" not in str(caught.value)


def test_what_a_recipe_and_a_domain_refuse() -> None:
    with pytest.raises(ValueError, match="need a fabric"):
        Recipe(name="x", domain=DOMAIN, n_domains=2, fabric=None, hardware=HARDWARE)
    for field, value in (("nics_per_host", 9), ("hosts", 0), ("nic_Bps", 0.0), ("pcie_latency_s", -1.0)):
        with pytest.raises(ValueError, match=field):
            replace(DOMAIN, **{field: value})
