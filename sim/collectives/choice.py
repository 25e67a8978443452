"""Which collective a library takes for a size: NCCL's choice.

NCCL reckons latency + bytes / bandwidth for each of its algorithms and protocols and takes the
least (NVIDIA/nccl, src/graph/tuning.cc). Here the bandwidth is what the links give, and the costs
are those of `protocols`. Inside a domain its tree is a chain and never less than the ring, so trees
are asked only between domains. What it does over NVLink switches and trees at once (NVLSTree) is
not there. Where the hardware table asks for fitted costs, groups inside a domain have those of
`moecast.sim.cost.collectives`.

Axes: D group, F flow, X (flow, link) pair, J link.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives import fitted
from moecast.sim.collectives.groups import Group, groups_of
from moecast.sim.collectives.links import link_capacity
from moecast.sim.collectives.operations import Kind, collective_template, find_kind
from moecast.sim.collectives.protocols import IN_SWITCH, PLAIN, RING_PROTOCOLS, TREE_PROTOCOLS, NETWORK_POST_s, Protocol
from moecast.sim.collectives.template import FlowTemplate
from moecast.sim.sites import Sites

NCCL = "nccl"
"""The name of NCCL's choice where a kind is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """A collective laid out, with what carries it.

    Parameters
    ----------
    by_network
        Whether NCCL's proxies send some of it to other domains.
    posts
        Messages to other domains that each rank's proxy posts one after the other, before the last
        of them can leave.
    """

    kind: Kind
    protocol: Protocol
    template: FlowTemplate

    @property
    def name(self) -> str:
        """Such as ``ring/LL128``."""
        return self.kind.name if self.protocol is PLAIN else f"{self.kind.name}/{self.protocol.name}"

    by_network: bool = False
    posts: int = 0

    def setup_s(self, sites: Sites) -> float:
        """Before the first byte moves."""
        hardware = sites.cluster.hardware
        launch_s = hardware.collective_launch_s + hardware.barrier_s
        network_s = hardware.network_launch_s + self.posts * NETWORK_POST_s if self.by_network else 0.0
        return network_s + (launch_s if self.protocol.start_s is None else self.protocol.start_s)

    def estimate_s(self, sites: Sites, bytes_D: npt.ArrayLike) -> float:
        """Setup, the fullest link, and the longest latency: what the choice is made by, not what a rung says."""
        counts_D = np.ceil(np.asarray(bytes_D, np.float64) / self.template.copy_bytes).astype(np.int64)
        flows = self.template.fill(counts_D)
        capacity_J = link_capacity(sites)
        units_X = np.repeat(flows.bytes_F, np.diff(flows.offsets_F1)) * flows.share_X
        busy_J = np.bincount(flows.link_X, units_X, len(capacity_J)) / capacity_J
        return self.setup_s(sites) + float(busy_J.max()) + float(flows.latency_F.max(initial=0.0))


def candidates(
    sites: Sites, groups_DM: npt.ArrayLike, *, operation: str, kind: str = NCCL, unit_bytes: float = 1.0
) -> list[Choice]:
    """Lay out all that may be chosen: NCCL's pairs of algorithm and protocol, or one kind over the links alone."""
    by_network, posts = False, 0
    if kind != NCCL:
        pairs = [(find_kind(operation, kind), PLAIN)]
    else:
        groups = list(groups_of(sites, groups_DM))
        pairs = list(_nccl_pairs(operation, groups))
        by_network = not all(group.in_one_domain for group in groups)
        posts = max(group.most_away for group in groups) if operation == "all-to-all" else 0
    return [
        Choice(
            kind=found,
            protocol=protocol,
            template=collective_template(
                sites, groups_DM, operation=operation, kind=found, protocol=protocol, unit_bytes=unit_bytes
            ),
            by_network=by_network,
            posts=posts,
        )
        for found, protocol in pairs
    ]


def pick(choices: list[Choice], sites: Sites, bytes_D: npt.ArrayLike) -> Choice:
    """Take the one that is reckoned to be done first; the first of equals."""
    return min(choices, key=lambda choice: choice.estimate_s(sites, bytes_D))


def engine_candidates(sites: Sites, groups_DM: npt.ArrayLike, *, unit_bytes: float = 1.0) -> list[Choice]:
    """Lay out an engine's own all-reduce kernels, where its hardware table asks for fitted costs; else none."""
    groups, hardware = list(groups_of(sites, groups_DM)), sites.cluster.hardware
    if not fitted.is_fitted(hardware) or not all(group.in_one_domain for group in groups):
        return []
    return [
        Choice(
            kind=find_kind("all-reduce", kind),
            protocol=protocol,
            template=collective_template(
                sites, groups_DM, operation="all-reduce", kind=kind, protocol=protocol, unit_bytes=unit_bytes
            ),
        )
        for kind, protocol in fitted.engine_protocols(hardware, groups[0].n)
    ]


def _fitted_pairs(operation: str, groups: list[Group]) -> Iterator[tuple[Kind, Protocol]]:
    """NCCL's pairs inside domains, by fitted costs."""
    hardware, ranks = groups[0].sites.cluster.hardware, groups[0].n
    if operation == "all-to-all":
        direct = find_kind(operation, "direct")
        yield from ((direct, protocol) for protocol in fitted.all_to_all_protocols(hardware, ranks))
        return
    ring = find_kind(operation, "ring")
    yield from ((ring, protocol) for protocol in fitted.ring_protocols(hardware, operation, ranks))
    in_switch = find_kind(operation, "in-switch")
    if operation == "all-reduce" and all(in_switch.supports(operation, group) for group in groups):
        yield in_switch, fitted.in_switch_protocol(hardware)


def _nccl_pairs(operation: str, groups: list[Group]) -> Iterator[tuple[Kind, Protocol]]:
    inside = all(group.in_one_domain for group in groups)
    if inside and operation != "send-recv" and fitted.is_fitted(groups[0].sites.cluster.hardware):
        yield from _fitted_pairs(operation, groups)
        return
    if operation in ("all-to-all", "send-recv"):
        yield find_kind(operation, "direct" if operation == "all-to-all" else "cyclic"), PLAIN
        return
    yield from ((find_kind(operation, "ring"), protocol) for protocol in RING_PROTOCOLS)
    if operation == "all-reduce":
        if not inside:
            yield from ((find_kind(operation, "tree"), protocol) for protocol in TREE_PROTOCOLS)
        in_switch = find_kind(operation, "in-switch")
        if all(in_switch.supports(operation, group) for group in groups):
            yield in_switch, IN_SWITCH
