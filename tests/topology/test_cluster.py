"""The cluster as a value: what it refuses, what it derives, that it compares, hashes and pickles."""

import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from moecast.topology import Cluster, Gpu, Link, Nic, Switch, load_cluster
from tests.topology.clusters import HARDWARE, build, clusters


def pair(count: int = 2) -> tuple[list, list]:
    """GPUs on one NVSwitch."""
    gpus = [Gpu(name=f"gpu{i}", id=i, node=0, domain=0, index=i) for i in range(count)]
    switch = Switch(name="nvswitch", tier="nvswitch")
    links = [
        Link.between(*ends, capacity_Bps=1e9, latency_s=1e-6) for gpu in gpus for ends in ((gpu, switch), (switch, gpu))
    ]
    return [*gpus, switch], links


def make(nodes: list, links: list, **fields: object) -> Cluster:
    return Cluster(name="made", nodes=tuple(nodes), links=tuple(links), hardware=HARDWARE, **fields)


def test_what_a_cluster_derives() -> None:
    cluster = build("leaf-spine", 3, nodes_per_leaf=2)
    assert (cluster.n_gpus, cluster.n_domains, cluster.n_nodes) == (24, 3, 3)
    assert [gpu.id for gpu in cluster.gpus] == list(range(24))
    assert cluster.domain_of_gpu_G.dtype == cluster.node_of_gpu_G.dtype == cluster.index_in_domain_G.dtype == np.int32
    for gpu in cluster.gpus:
        assert cluster.gpu_at(gpu.domain, gpu.index) == gpu.id
    assert len(set(cluster.link_names_J)) == len(cluster.links) == len(cluster.link_kind_J)
    with pytest.raises(ValueError, match="domain 3"):
        cluster.gpu_at(3, 0)


def test_the_graph_holds_every_node_and_link() -> None:
    cluster = build("rail", 2)
    graph = cluster.graph
    assert set(graph) == {node.name for node in cluster.nodes}
    assert graph.number_of_edges() == len(cluster.links)
    for source, destination, data in graph.edges(data=True):
        assert cluster.links[data["index"]] == data["link"]
        assert (data["link"].source, data["link"].destination) == (source, destination)


@given(clusters())
@settings(deadline=None, max_examples=30)
def test_every_link_has_its_opposite(cluster: Cluster) -> None:
    capacity = {(link.source, link.destination): link.capacity_Bps for link in cluster.links}
    assert all(capacity[end, start] == value for (start, end), value in capacity.items())


def test_equal_clusters_hash_and_pickle() -> None:
    one, two = build("rail", 2), build("rail", 2)
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != build("rail", 2, name="other")
    assert one != build("rail", 2, routing="ecmp")


def test_a_large_cluster_is_made_at_once() -> None:
    start = time.perf_counter()
    cluster = load_cluster("dgx-h200", nodes=64, fabric="leaf-spine:2")
    assert cluster.n_gpus == 512
    assert time.perf_counter() - start < 1.0


def test_a_gpu_that_others_cannot_reach_is_named() -> None:
    nodes, links = pair(4)
    with pytest.raises(ValueError, match="GPU gpu2 is unreachable from GPU gpu0"):
        make(nodes, [link for link in links if "gpu2" not in link.name])
    with pytest.raises(ValueError, match="GPU gpu2 is unreachable from GPU gpu0"):
        make(nodes, [link for link in links if link.destination != "gpu2"])
    with pytest.raises(ValueError, match="GPU gpu2 is unreachable: no path leads from it"):
        make(nodes, [link for link in links if link.source != "gpu2"])


def test_no_path_leads_through_a_gpu() -> None:
    nodes, links = pair(2)
    third = Gpu(name="gpu2", id=2, node=0, domain=0, index=2)
    wires = [Link.between(*ends, 1e9, 0.0) for ends in ((nodes[1], third), (third, nodes[1]))]
    with pytest.raises(ValueError, match="unreachable"):
        make([*nodes, third], [*links, *wires])


def test_what_a_cluster_refuses() -> None:
    nodes, links = pair()
    cases = [
        ([], [], "at least one GPU"),
        ([nodes[0], nodes[0], nodes[2]], links, "GPU ids"),
        ([replace(nodes[0], name="gpu1"), *nodes[1:]], links, "two nodes are called 'gpu1'"),
        ([nodes[0], replace(nodes[1], index=0), nodes[2]], links, "domain 0: the indices"),
        ([replace(nodes[0], domain=1), replace(nodes[1], domain=3), nodes[2]], links, "domains must be numbered"),
        (nodes, [*links, links[0]], "given twice"),
        (nodes[:2], links, "no node is called 'nvswitch'"),
        (nodes, [replace(links[0], kind="nic-out"), *links[1:]], "does not fit"),
    ]
    for bad_nodes, bad_links, match in cases:
        with pytest.raises(ValueError, match=match):
            make(bad_nodes, bad_links)
    with pytest.raises(ValueError, match="routing"):
        make(nodes, links, routing="guess")


@pytest.mark.parametrize(("capacity", "latency"), [(0.0, 0.0), (-1.0, 0.0), (float("nan"), 0.0), (1.0, -1.0)])
def test_a_link_has_a_rate_and_no_negative_latency(capacity: float, latency: float) -> None:
    nodes, _ = pair()
    with pytest.raises(ValueError, match="link gpu0->nvswitch"):
        Link.between(nodes[0], nodes[2], capacity, latency)


def test_nodes_that_cannot_be_linked() -> None:
    with pytest.raises(ValueError, match="a gpu cannot be linked to a leaf"):
        Link.between(pair()[0][0], Switch(name="leaf", tier="leaf"), 1e9, 0.0)


def test_a_hand_made_cluster_without_switches() -> None:
    gpus = [Gpu(name=f"gpu{i}", id=i, node=i, domain=i, index=0) for i in range(2)]
    nics = [Nic(name=f"nic{i}", node=i) for i in range(2)]
    ends = [(gpus[0], nics[0]), (nics[0], nics[1]), (nics[1], gpus[1])]
    links = [Link.between(*pair, 1e9, 1e-6) for a, b in ends for pair in ((a, b), (b, a))]
    cluster = make([*nics, *gpus], links)
    assert cluster.nodes == (*gpus, *nics)
    routes = cluster.routes([0, 1], [1, 0])
    assert [cluster.link_kind_J[j] for j in routes.link_X] == ["pcie-out", "nic-direct", "pcie-in"] * 2
