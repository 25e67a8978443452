"""A cluster: GPUs, NICs and switches, the links between them, and the paths that flows take.

Axes: G GPU, J link.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from moecast.topology.hardware import Hardware
from moecast.topology.nodes import LINK_KINDS, NVLINK_KINDS, Gpu, Link, Nic, Node, Switch, link_kind
from moecast.topology.paths import Adjacency
from moecast.topology.routes import Network, Routes, find_routes

if TYPE_CHECKING:
    import networkx as nx

    from moecast.topology.recipe import Recipe

Routing = Literal["ecmp", "spray"]
ROUTINGS: tuple[Routing, ...] = ("ecmp", "spray")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """GPUs of one kind and the network between them.

    Two clusters are equal when their names, nodes, links, hardware and routing are.

    Parameters
    ----------
    name
        How outputs call it.
    nodes
        GPUs, NICs and switches, kept in this order; the ids of the GPUs are 0, 1, 2, ... in any
        order.
    links
        Directed links between them; two nodes have at most one link in each direction.
    hardware
        The hardware table of the GPUs.
    routing
        "ecmp" hashes a flow onto one of its shortest paths, "spray" divides it over all of them, as
        adaptive routing does: by what they carry.
    recipe
        What the cluster was built from, where it was built from a preset.

    Raises
    ------
    ValueError
        Names or ids that repeat or are missing, links that cannot be, a GPU that others of its
        domain cannot reach over NVLink, or one that other domains cannot reach at all.
    """

    name: str
    nodes: tuple[Node, ...] = field(repr=False)
    links: tuple[Link, ...] = field(repr=False)
    hardware: Hardware = field(repr=False)
    routing: Routing = "ecmp"
    recipe: Recipe | None = field(default=None, compare=False, repr=False)

    gpus: tuple[Gpu, ...] = field(init=False, compare=False, repr=False)
    link_names_J: list[str] = field(init=False, compare=False, repr=False)
    link_kind_J: tuple[str, ...] = field(init=False, compare=False, repr=False)
    capacity_J: npt.NDArray[np.float64] = field(init=False, compare=False, repr=False)
    latency_J: npt.NDArray[np.float64] = field(init=False, compare=False, repr=False)
    node_of_gpu_G: npt.NDArray[np.int32] = field(init=False, compare=False, repr=False)
    domain_of_gpu_G: npt.NDArray[np.int32] = field(init=False, compare=False, repr=False)
    index_in_domain_G: npt.NDArray[np.int32] = field(init=False, compare=False, repr=False)
    _gpu_at: dict[tuple[int, int], int] = field(init=False, compare=False, repr=False)
    _network: Network = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.routing not in ROUTINGS:
            raise ValueError(f"routing = {self.routing!r} is not one of {', '.join(ROUTINGS)}")
        gpus = _checked_gpus(self.nodes)
        _check_links(self.nodes, self.links)
        nics = [node for node in self.nodes if isinstance(node, Nic)]
        switches = [node for node in self.nodes if isinstance(node, Switch)]
        _check_reachable(gpus, self.links)
        nodes: tuple[Node, ...] = (*gpus, *nics, *switches)
        domain_of_gpu_G = np.array([gpu.domain for gpu in gpus], dtype=np.int32)
        inside = Adjacency.of(nodes, self.links, kinds=NVLINK_KINDS)
        between = Adjacency.of(nodes, self.links, kinds=_kinds_between(gpus, self.links))
        latency_J = np.array([link.latency_s for link in self.links], dtype=np.float64)
        derived = {
            "nodes": nodes,
            "gpus": gpus,
            "link_names_J": [link.name for link in self.links],
            "link_kind_J": tuple(link.kind for link in self.links),
            "capacity_J": np.array([link.capacity_Bps for link in self.links], dtype=np.float64),
            "latency_J": latency_J,
            "node_of_gpu_G": np.array([gpu.node for gpu in gpus], dtype=np.int32),
            "domain_of_gpu_G": domain_of_gpu_G,
            "index_in_domain_G": np.array([gpu.index for gpu in gpus], dtype=np.int32),
            "_gpu_at": {(gpu.domain, gpu.index): gpu.id for gpu in gpus},
            "_network": Network(
                inside=inside,
                between=between,
                inside_doors=inside.doors(),
                between_doors=between.doors(),
                domain_of_gpu_G=domain_of_gpu_G,
                latency_J=latency_J,
            ),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def with_hardware(self, hardware: Hardware) -> Cluster:
        """The same network between GPUs of another hardware table; it is not checked again."""
        other = copy(self)
        object.__setattr__(other, "hardware", hardware)
        return other

    @property
    def n_gpus(self) -> int:
        """The number of GPUs."""
        return len(self.gpus)

    @property
    def n_domains(self) -> int:
        """The number of NVLink domains."""
        return int(self.domain_of_gpu_G.max()) + 1

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed of it; nothing but where a host's own description left something open."""
        return self.recipe.notes if self.recipe else ()

    @property
    def n_nodes(self) -> int:
        """The number of hosts."""
        return len(np.unique(self.node_of_gpu_G))

    @property
    def graph(self) -> nx.DiGraph[str]:
        """The cluster as a networkx graph, made anew: nodes by name with `node`, edges with `link` and `index`."""
        import networkx as nx  # 0.3 s that only those who draw or measure pay

        graph: nx.DiGraph[str] = nx.DiGraph(name=self.name)
        graph.add_nodes_from((node.name, {"node": node, "kind": node.kind}) for node in self.nodes)
        graph.add_edges_from(
            (link.source, link.destination, {"link": link, "index": index, "capacity_Bps": link.capacity_Bps})
            for index, link in enumerate(self.links)
        )
        return graph

    def gpu_at(self, domain: int, index: int) -> int:
        """Find the GPU with this place in its domain.

        Raises
        ------
        ValueError
            The domain has no such place.
        """
        try:
            return self._gpu_at[domain, index]
        except KeyError:
            raise ValueError(f"domain {domain} has no GPU with index {index}") from None

    def routes(self, source_F: npt.ArrayLike, destination_F: npt.ArrayLike, *, seed: int = 0) -> Routes:
        """Find the links that each flow takes.

        Parameters
        ----------
        source_F, destination_F
            GPU ids, one per flow; a flow from a GPU to itself takes no link.
        seed
            Of the ECMP hash (see `moecast.topology.routes`); spraying ignores it.

        Raises
        ------
        ValueError
            Arrays of different lengths, or an id that is no GPU.
        """
        return find_routes(self._network, source_F, destination_F, spray=self.routing == "spray", seed=seed)


def _checked_gpus(nodes: Iterable[Node]) -> tuple[Gpu, ...]:
    gpus = sorted((node for node in nodes if isinstance(node, Gpu)), key=lambda gpu: gpu.id)
    if not gpus:
        raise ValueError("a cluster has at least one GPU")
    if [gpu.id for gpu in gpus] != list(range(len(gpus))):
        raise ValueError(f"GPU ids must be 0..{len(gpus) - 1}, each once")
    domains = {gpu.domain for gpu in gpus}
    if domains != set(range(len(domains))):
        raise ValueError(f"domains must be numbered 0..{len(domains) - 1}, got {sorted(domains)}")
    indices: dict[int, list[int]] = {domain: [] for domain in domains}
    for gpu in gpus:
        indices[gpu.domain].append(gpu.index)
    for domain, found in indices.items():
        if sorted(found) != list(range(len(found))):
            raise ValueError(f"domain {domain}: the indices of its GPUs must be 0..{len(found) - 1}, each once")
    return tuple(gpus)


def _check_links(nodes: Iterable[Node], links: Iterable[Link]) -> None:
    by_name: dict[str, Node] = {}
    for node in nodes:
        if node.name in by_name:
            raise ValueError(f"two nodes are called {node.name!r}")
        by_name[node.name] = node
    seen: set[tuple[str, str]] = set()
    for link in links:
        for end in (link.source, link.destination):
            if end not in by_name:
                raise ValueError(f"link {link.name}: no node is called {end!r}")
        if link.kind != link_kind(by_name[link.source], by_name[link.destination]):
            raise ValueError(f"link {link.name}: kind {link.kind!r} does not fit what it joins")
        if (link.source, link.destination) in seen:
            raise ValueError(f"link {link.name} is given twice; make parallel cables one link of their summed capacity")
        seen.add((link.source, link.destination))


def _kinds_between(gpus: tuple[Gpu, ...], links: Sequence[Link]) -> frozenset[str]:
    """Kinds of links of paths between domains: those of NVLink switches only where one of them joins two domains."""
    domain = {gpu.name: gpu.domain for gpu in gpus}
    of_switch: dict[str, set[int]] = {}
    for link in links:
        if link.kind == "nvlink-out":
            of_switch.setdefault(link.destination, set()).add(domain[link.source])
    inside = all(len(domains) == 1 for domains in of_switch.values())
    return frozenset(LINK_KINDS.values()) - ({"nvlink-out", "nvlink-in"} if inside else frozenset())


def _check_reachable(gpus: tuple[Gpu, ...], links: tuple[Link, ...]) -> None:
    """Name a GPU that another of its domain cannot reach over NVLink, or another domain cannot reach at all."""
    domain: dict[int, int] = {}
    for gpu in gpus:
        domain[gpu.domain] = domain.get(gpu.domain, 0) | 1 << gpu.id
    everyone = (1 << len(gpus)) - 1
    nvlinks = [link for link in links if link.kind in NVLINK_KINDS]
    missing_G = [domain[gpu.domain] & ~seen for gpu, seen in zip(gpus, _reach(gpus, nvlinks), strict=True)]
    if any(missing_G):
        raise ValueError(_name_missing(gpus, missing_G, nvlinks) + " over NVLink, though they share a domain")
    if len(domain) > 1:
        missing_G = [everyone & ~domain[g.domain] & ~seen for g, seen in zip(gpus, _reach(gpus, links), strict=True)]
        if any(missing_G):
            raise ValueError(_name_missing(gpus, missing_G, links))


def _reach(gpus: tuple[Gpu, ...], links: Sequence[Link]) -> list[int]:
    """Find the GPUs that each GPU reaches without passing through another, itself included, as bits by id."""
    bit = {gpu.name: 1 << gpu.id for gpu in gpus}
    reach = dict.fromkeys((link.source for link in links), 0)
    changed = True
    while changed:
        changed = False
        for link in links:
            seen = bit[link.destination] if link.destination in bit else reach.get(link.destination, 0)
            if seen & ~reach[link.source]:
                reach[link.source] |= seen
                changed = True
    return [reach.get(gpu.name, 0) | bit[gpu.name] for gpu in gpus]


def _name_missing(gpus: tuple[Gpu, ...], missing_G: list[int], links: Sequence[Link]) -> str:
    """Pick the GPU to name: the one that most others miss, since those are its victims; of two, the less linked."""
    ends = Counter(end for link in links for end in (link.source, link.destination))
    misses_G = [sum(missing >> g.id & 1 for missing in missing_G) + missing_G[g.id].bit_count() for g in gpus]
    lost = max(gpus, key=lambda gpu: (misses_G[gpu.id], -ends[gpu.name]))
    cut_off = next((gpu for gpu in gpus if missing_G[gpu.id] >> lost.id & 1), None)
    if cut_off:
        return f"GPU {lost.name} is unreachable from GPU {cut_off.name}"
    first = gpus[(missing_G[lost.id] & -missing_G[lost.id]).bit_length() - 1]
    return f"GPU {lost.name} is unreachable: no path leads from it to GPU {first.name}"
