"""Paths: each is connected and shortest, shares add up, the hash is what the documentation says."""

import itertools
import time
from dataclasses import replace
from random import Random

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.topology import Cluster, Gpu, Link, Routes, load_cluster
from tests.topology.clusters import DOMAIN, build, clusters

MASK = 2**64 - 1


def all_pairs(cluster: Cluster) -> tuple[np.ndarray, np.ndarray]:
    return np.divmod(np.arange(cluster.n_gpus**2), cluster.n_gpus)


def links_of(routes: Routes, flow: int) -> list[tuple[int, float]]:
    entries = slice(routes.offsets_F1[flow], routes.offsets_F1[flow + 1])
    return list(zip(routes.link_X[entries].tolist(), routes.share_X[entries].tolist(), strict=True))


def shortest_paths(cluster: Cluster, source: int, destination: int) -> list[list[int]]:
    """By networkx, as lists of links, in the order in which paths are counted: that of the links."""
    others = [gpu.name for gpu in cluster.gpus if gpu.id not in (source, destination)]
    graph = cluster.graph
    graph.remove_nodes_from(others)
    if cluster.domain_of_gpu_G[source] == cluster.domain_of_gpu_G[destination]:
        graph.remove_nodes_from([node.name for node in cluster.nodes if node.kind in ("nic", "leaf", "spine")])
    start, end = cluster.gpus[source].name, cluster.gpus[destination].name
    paths = [
        [graph.edges[pair]["index"] for pair in itertools.pairwise(path)]
        for path in nx.all_shortest_paths(graph, start, end)
    ]
    return sorted(paths)


def hash_by_hand(seed: int, source: int, destination: int) -> int:
    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) & MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        return value ^ (value >> 31)

    return mix(mix(mix(seed & MASK) ^ source) ^ destination)


@given(clusters(), st.integers(-(2**70), 2**70), st.data())
@settings(deadline=None, max_examples=60)
def test_routes_are_the_shortest_paths(cluster: Cluster, seed: int, data: st.DataObject) -> None:
    source = data.draw(st.integers(0, cluster.n_gpus - 1))
    destination = data.draw(st.integers(0, cluster.n_gpus - 1))
    found = links_of(cluster.routes([source], [destination], seed=seed), 0)
    if source == destination:
        assert not found
        return
    paths = shortest_paths(cluster, source, destination)
    if cluster.routing == "ecmp":
        wanted = paths[hash_by_hand(seed, source, destination) % len(paths)]
        assert found == [(link, 1.0) for link in wanted]
    else:
        uses = np.bincount(np.concatenate(paths), minlength=len(cluster.links)) / len(paths)
        assert sorted(link for link, _ in found) == np.flatnonzero(uses).tolist()
        assert all(abs(uses[link] - share) < 1e-12 for link, share in found)


@given(clusters(), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_every_flow_is_carried_whole_from_source_to_destination(cluster: Cluster, seed: int) -> None:
    source_F, destination_F = all_pairs(cluster)
    routes = cluster.routes(source_F, destination_F, seed=seed)
    position = {node.name: index for index, node in enumerate(cluster.nodes)}
    leaves_J = np.array([position[link.source] for link in cluster.links])
    enters_J = np.array([position[link.destination] for link in cluster.links])
    net = np.zeros((routes.n_flows, len(cluster.nodes)))
    np.add.at(net, (routes.flow_X, leaves_J[routes.link_X]), routes.share_X)
    np.add.at(net, (routes.flow_X, enters_J[routes.link_X]), -routes.share_X)
    wanted = np.zeros_like(net)
    flow = np.arange(routes.n_flows)
    wanted[flow, source_F] += 1
    wanted[flow, destination_F] -= 1
    np.testing.assert_allclose(net, wanted, atol=1e-12)
    through = np.array([isinstance(cluster.nodes[node], Gpu) for node in enters_J[routes.link_X]], dtype=bool)
    assert np.array_equal(enters_J[routes.link_X][through], destination_F[routes.flow_X][through])


@given(clusters())
@settings(deadline=None, max_examples=40)
def test_both_directions_take_as_many_links_and_as_long(cluster: Cluster) -> None:
    source_F, destination_F = all_pairs(cluster)
    there, back = cluster.routes(source_F, destination_F), cluster.routes(destination_F, source_F)
    hops = np.bincount(there.flow_X, weights=there.share_X, minlength=there.n_flows)
    np.testing.assert_allclose(hops, np.bincount(back.flow_X, weights=back.share_X, minlength=back.n_flows), atol=1e-9)
    np.testing.assert_allclose(there.latency_F, back.latency_F, atol=1e-15)


@given(clusters(), st.data())
@settings(deadline=None, max_examples=40)
def test_a_flow_is_routed_the_same_in_any_company(cluster: Cluster, data: st.DataObject) -> None:
    ids = st.lists(st.tuples(*[st.integers(0, cluster.n_gpus - 1)] * 2), min_size=1, max_size=30)
    flows = np.array(data.draw(ids))
    together = cluster.routes(flows[:, 0], flows[:, 1], seed=5)
    assert together.offsets_F1.dtype == np.int64
    assert together.link_X.dtype == np.int32
    for flow, (source, destination) in enumerate(flows):
        alone = cluster.routes([source], [destination], seed=5)
        assert links_of(together, flow) == links_of(alone, 0)
        assert together.latency_F[flow] == pytest.approx(alone.latency_F[0], abs=1e-15)


@given(clusters(routing="spray"), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_renaming_gpus_moves_no_sprayed_byte(cluster: Cluster, random: Random) -> None:
    new_id = list(range(cluster.n_gpus))
    random.shuffle(new_id)
    renamed = replace(cluster, nodes=[replace(n, id=new_id[n.id]) if isinstance(n, Gpu) else n for n in cluster.nodes])
    source_F, destination_F = all_pairs(cluster)
    before = cluster.routes(source_F, destination_F)
    after = renamed.routes(np.array(new_id)[source_F], np.array(new_id)[destination_F])
    for flow in range(before.n_flows):
        assert dict(links_of(before, flow)) == pytest.approx(dict(links_of(after, flow)), rel=1e-12)


def test_many_flows_are_routed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = build("leaf-spine", 4, oversubscription=2, nodes_per_leaf=1, routing="ecmp")
    source_F, destination_F = all_pairs(cluster)
    at_once = cluster.routes(source_F, destination_F, seed=2)
    monkeypatch.setattr("moecast.topology.routes._BLOCK_ENTRIES", 1)
    monkeypatch.setattr("moecast.topology.routes._JOINED_PAIRS", 50)
    monkeypatch.setattr("moecast.topology.routes._PUT_FLOWS", 7)
    in_blocks = cluster.routes(source_F, destination_F, seed=2)
    for name in ("offsets_F1", "link_X", "share_X", "latency_F"):
        assert np.array_equal(getattr(at_once, name), getattr(in_blocks, name))


def test_routes_in_a_leaf_spine_fabric() -> None:
    cluster = build("leaf-spine", 4, oversubscription=2, nodes_per_leaf=2)
    routes = cluster.routes([0, 0, 0, 3], [0, 1, 9, 17])
    names = [[cluster.link_names_J[link] for link, _ in links_of(routes, flow)] for flow in range(4)]
    assert names[0] == []
    assert names[1] == ["node0/gpu0->nvswitch0", "nvswitch0->node0/gpu1"]
    # the same leaf: no spine, own NIC at both ends
    assert names[2] == [
        "node0/gpu0->node0/nic0",
        "node0/nic0->leaf0",
        "leaf0->node1/nic1",
        "node1/nic1->node1/gpu1",
    ]
    assert names[3][:2] == ["node0/gpu3->node0/nic3", "node0/nic3->leaf0"]
    assert sorted(names[3][2:10]) == [f"leaf0->spine{i}" for i in range(8)]
    np.testing.assert_allclose(routes.latency_F, [0, 2e-6, 2.5e-6, 3e-6])
    shares = [share for _, share in links_of(routes, 3)]
    assert shares == [1, 1] + [1 / 8] * 16 + [1, 1]


def test_rail_keeps_an_index_on_its_leaf() -> None:
    cluster = build("rail", 4, nodes_per_leaf=4)
    kinds = [cluster.link_kind_J[link] for link, _ in links_of(cluster.routes([3], [27]), 0)]
    assert kinds == ["pcie-out", "nic-out", "nic-in", "pcie-in"]
    kinds = [cluster.link_kind_J[link] for link, _ in links_of(cluster.routes([3], [28]), 0)]
    assert kinds.count("leaf-up") == 4


def test_gpus_that_share_a_nic_still_talk_over_nvlink() -> None:
    cluster = build("single-switch", 2, domain=replace(DOMAIN, nics_per_host=1), routing="ecmp")
    for seed in range(8):
        routes = cluster.routes([0, 0], [1, 9], seed=seed)
        kinds = [cluster.link_kind_J[link] for link, _ in links_of(routes, 0)]
        assert kinds == ["nvlink-out", "nvlink-in"]
        assert cluster.link_names_J[links_of(routes, 1)[1][0]] == "node0/nic0->switch"


def test_ecmp_spreads_flows_evenly_and_differently_with_each_seed() -> None:
    cluster = build("leaf-spine", 64, oversubscription=2, nodes_per_leaf=2, routing="ecmp")
    source, destination = np.meshgrid(np.arange(256), np.arange(256, 512), indexing="ij")
    spine = []
    for seed in (0, 1):
        routes = cluster.routes(source.ravel(), destination.ravel(), seed=seed)
        up = [j for j, kind in enumerate(cluster.link_kind_J) if kind == "leaf-up"]
        taken = routes.link_X[np.isin(routes.link_X, up)]
        spine.append(np.array([int(cluster.links[j].destination.removeprefix("spine")) for j in taken]))
        counts = np.bincount(spine[-1], minlength=8)
        expected = len(taken) / 8
        # chi squared with 7 degrees of freedom: above 30 once in 10,000
        assert ((counts - expected) ** 2 / expected).sum() < 30
    assert 0.1 < (spine[0] == spine[1]).mean() < 0.15  # 1/8 where seeds are independent


def test_the_hash_is_what_it_was() -> None:
    cluster = build("leaf-spine", 4, oversubscription=2, nodes_per_leaf=2, routing="ecmp")
    routes = cluster.routes([0] * 6, [16, 17, 18, 19, 20, 31], seed=0)
    spines = [cluster.link_names_J[j].split("->")[1] for j in routes.link_X if cluster.link_kind_J[j] == "leaf-up"]
    assert spines == [f"spine{hash_by_hand(0, 0, destination) % 8}" for destination in (16, 17, 18, 19, 20, 31)]


def test_no_flows() -> None:
    routes = load_cluster("dgx-h200").routes([], [])
    assert routes.n_flows == 0
    assert routes.offsets_F1.tolist() == [0]


@pytest.mark.parametrize(
    ("source", "destination", "match"),
    [
        ([0], [8], "0 to 7"),
        ([-1], [0], "0 to 7"),
        ([2**64 - 1], [0], "0 to 7"),
        ([0, 1], [0], "flows"),
        ([[0]], [[1]], "shape"),
    ],
)
def test_flows_that_cannot_be(source: list, destination: list, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_cluster("dgx-h200").routes(source, destination)


def test_routes_are_fast() -> None:
    cluster = load_cluster("dgx-h200", nodes=4, fabric="leaf-spine:2")
    source_F, destination_F = all_pairs(cluster)
    cluster.routes(source_F, destination_F)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        cluster.routes(source_F, destination_F)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1.0), st.sampled_from([1, 2, 4]))
@settings(deadline=None, max_examples=30)
def test_a_slow_cable_is_never_worse_than_none_and_no_better_than_a_whole_one(
    seed: int, speed: float, oversubscription: int
) -> None:
    """Bytes of an even exchange on the fabric's fullest link; closed form for two leaves, which share all spines."""
    cluster = build("leaf-spine", 4, oversubscription=oversubscription, nodes_per_leaf=2, routing="spray")
    cables = sorted({tuple(sorted((link.source, link.destination))) for link in cluster.links if "leaf" in link.kind})
    slow = cables[seed % len(cables)]

    def on(factor: float) -> Cluster:
        kept = (link for link in cluster.links if factor > 0 or not is_slow(link))
        links = (replace(link, capacity_Bps=factor * link.capacity_Bps) if is_slow(link) else link for link in kept)
        return replace(cluster, links=tuple(links))

    def is_slow(link: Link) -> bool:
        return tuple(sorted((link.source, link.destination))) == slow

    whole_s, slow_s, without_s = (fullest_s(on(factor)) for factor in (1.0, speed, 0.0))
    assert whole_s * (1 - 1e-9) <= slow_s <= without_s * (1 + 1e-9)
    uplinks = sum(link.kind == "leaf-up" for link in cluster.links) // 2
    assert slow_s == pytest.approx(whole_s * uplinks / (uplinks - 1 + speed), rel=1e-9)


def fullest_s(cluster: Cluster) -> float:
    """Seconds that the fullest link between switches needs for one byte from every GPU to every other."""
    routes = cluster.routes(*all_pairs(cluster))
    fabric_J = np.array(["leaf" in link.kind for link in cluster.links])
    load_J = np.bincount(routes.link_X, routes.share_X, len(cluster.links)) / cluster.capacity_J
    return float(load_J[fabric_J].max())
