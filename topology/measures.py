"""What a fabric can carry as a whole: oversubscription, bisection bandwidth, counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from moecast.topology.cluster import Cluster


@dataclass(frozen=True, kw_only=True, slots=True)
class FabricMeasures:
    """The measures of one cluster's network.

    Parameters
    ----------
    n_gpus, n_nodes, n_domains
        GPUs, hosts and NVLink domains.
    counts
        NICs and switches, by kind: "nic", "nvswitch", "leaf", "spine", "core".
    links
        Directed links by kind.
    bisection_Bps
        See `bisection_Bps`.
    bisection_per_gpu_Bps
        That, for each GPU of the sending half.
    oversubscription
        See `oversubscription`.
    """

    n_gpus: int
    n_nodes: int
    n_domains: int
    counts: dict[str, int]
    links: dict[str, int]
    bisection_Bps: float
    bisection_per_gpu_Bps: float
    oversubscription: float


def measure(cluster: Cluster) -> FabricMeasures:
    """Measure a cluster's network."""
    bisection = bisection_Bps(cluster)
    return FabricMeasures(
        n_gpus=cluster.n_gpus,
        n_nodes=cluster.n_nodes,
        n_domains=cluster.n_domains,
        counts=dict(Counter(node.kind for node in cluster.nodes if node.kind != "gpu")),
        links=dict(Counter(cluster.link_kind_J)),
        bisection_Bps=bisection,
        bisection_per_gpu_Bps=bisection / max(1, len(_sending_half(cluster))),
        oversubscription=oversubscription(cluster),
    )


def oversubscription(cluster: Cluster) -> float:
    """Capacity into the leaves from NICs over their capacity towards the spines, of the leaf where it is largest.

    1 where no leaf has anything above it: a single switch never blocks.
    """
    down: Counter[str] = Counter()
    up: Counter[str] = Counter()
    for link in cluster.links:
        if link.kind == "nic-out":
            down[link.destination] += link.capacity_Bps  # type: ignore[assignment]  # Counter holds floats as well
        elif link.kind in ("leaf-up", "leaf-direct"):
            up[link.source] += link.capacity_Bps  # type: ignore[assignment]
    return max((down[leaf] / up[leaf] for leaf in up), default=1.0)


def bisection_Bps(cluster: Cluster) -> float:
    """Bytes per second that one half of the GPUs can send to the other, over all paths at once.

    The first half of the domains sends to the rest (within a single domain, the first half of its
    GPUs), in the order of their ids, so that neighbours on a leaf stay together. It is a maximum
    flow, of which routing reaches at most as much.
    """
    senders = _sending_half(cluster)
    if not senders:
        return 0.0
    import networkx as nx

    side = {gpu.name: "half 0" if gpu.id in senders else "half 1" for gpu in cluster.gpus}
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(["half 0", "half 1"])
    for link in cluster.links:
        start, end = side.get(link.source, link.source), side.get(link.destination, link.destination)
        if start == end or start == "half 1" or end == "half 0":
            continue
        known = graph.get_edge_data(start, end, {"capacity": 0.0})["capacity"]
        graph.add_edge(start, end, capacity=known + link.capacity_Bps)
    return float(nx.maximum_flow_value(graph, "half 0", "half 1"))


def _sending_half(cluster: Cluster) -> set[int]:
    if cluster.n_domains == 1:
        return set(range(cluster.n_gpus // 2))
    return {gpu.id for gpu in cluster.gpus if gpu.domain < cluster.n_domains // 2}
