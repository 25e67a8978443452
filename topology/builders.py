"""Builders: from a few words (`Recipe`) to every node and link of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from moecast.topology.cluster import Cluster
from moecast.topology.fabric import Fabric
from moecast.topology.nodes import Gpu, Link, Nic, Node, Switch
from moecast.topology.recipe import Domain, Recipe

# A node of the fabric is a host: its NICs in order.
HostNics = Sequence[Nic]


def build_cluster(recipe: Recipe) -> Cluster:
    """Build the cluster that a recipe describes: its domains, then the fabric between their NICs."""
    nodes: list[Node] = []
    links: list[Link] = []
    hosts: list[HostNics] = []
    for index in range(recipe.n_domains):
        hosts += add_domain(recipe.domain, index, nodes, links)
    if recipe.fabric is not None:
        add_fabric(recipe.fabric, recipe.domain, hosts, nodes, links)
    return Cluster(
        name=recipe.name,
        nodes=tuple(nodes),
        links=tuple(links),
        hardware=recipe.hardware,
        routing=(recipe.fabric.routing if recipe.fabric else None) or "ecmp",
        recipe=recipe,
    )


def add_domain(domain: Domain, index: int, nodes: list[Node], links: list[Link]) -> list[HostNics]:
    """Append NVLink domain number `index`, its GPUs and its NICs; returns the NICs of each host."""
    nvswitch = Switch(name=f"nvswitch{index}", tier="nvswitch")
    if not domain.direct_nvlink:
        nodes.append(nvswitch)
    hosts: list[HostNics] = []
    for host in range(index * domain.hosts, (index + 1) * domain.hosts):
        nics = [Nic(name=f"node{host}/nic{i}", node=host) for i in range(domain.nics_per_host)]
        first = host * domain.gpus_per_host
        gpus = [
            Gpu(
                name=f"node{host}/gpu{i}",
                id=first + i,
                node=host,
                domain=index,
                index=first + i - index * domain.n_gpus,
            )
            for i in range(domain.gpus_per_host)
        ]
        nodes += [*gpus, *nics]
        for i, gpu in enumerate(gpus):
            if domain.direct_nvlink:
                for peer in gpus[i + 1 :]:
                    links += _both_ways(gpu, peer, domain.nvlink_Bps / (len(gpus) - 1), domain.nvlink_latency_s)
            else:
                links += _both_ways(gpu, nvswitch, domain.nvlink_Bps, domain.nvlink_latency_s)
            links += _both_ways(gpu, nics[domain.nic_of(i)], domain.pcie_Bps, domain.pcie_latency_s)
        hosts.append(nics)
    return hosts


def add_fabric(fabric: Fabric, domain: Domain, hosts: Sequence[HostNics], nodes: list[Node], links: list[Link]) -> None:
    """Append leaves and spines and join every NIC to its leaf, every leaf to every spine."""
    per_leaf = len(hosts) if fabric.shape == "single-switch" else min(fabric.nodes_per_leaf or 1, len(hosts))
    leaves: list[Switch] = []
    for pod in range(0, len(hosts), per_leaf):
        for name, nics in _leaves(fabric, hosts[pod : pod + per_leaf], pod // per_leaf):
            leaf = Switch(name=name, tier="leaf")
            leaves.append(leaf)
            nodes.append(leaf)
            for nic in nics:
                links += _both_ways(nic, leaf, domain.nic_Bps, domain.nic_latency_s)
    if len(leaves) > 1:
        ports = per_leaf * (1 if fabric.shape == "rail" else domain.nics_per_host)
        n_spines = ceil(ports / fabric.oversubscription)
        cable_Bps = ports * domain.nic_Bps / fabric.oversubscription / n_spines
        for index in range(n_spines):
            spine = Switch(name=f"spine{index}", tier="spine")
            nodes.append(spine)
            for leaf in leaves:
                links += _both_ways(leaf, spine, cable_Bps, domain.switch_latency_s)


def _leaves(fabric: Fabric, hosts: Sequence[HostNics], pod: int) -> list[tuple[str, list[Nic]]]:
    """Name the leaves of one group of hosts and the NICs on each."""
    if fabric.shape == "rail":
        return [(f"pod{pod}/rail{i}", list(rail)) for i, rail in enumerate(zip(*hosts, strict=True))]
    name = "switch" if fabric.shape == "single-switch" else f"leaf{pod}"
    return [(name, [nic for nics in hosts for nic in nics])]


def _both_ways(a: Node, b: Node, capacity_Bps: float, latency_s: float) -> tuple[Link, Link]:
    return Link.between(a, b, capacity_Bps, latency_s), Link.between(b, a, capacity_Bps, latency_s)
