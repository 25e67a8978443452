"""Collectives in two levels: inside the domains over NVLink, and between the ranks of one index over their rails.

An all-reduce adds up shares inside each domain (reduce-scatter, direct), all-reduces each share
round a ring of the ranks of its index, and gathers inside again; a reduce-scatter and an all-gather
leave one half out. The levels are pipelined by chunk: an edge starts when its parents have sent a
first chunk, and ends after them.

Closed form, d domains of k ranks, NICs slower than NVLink by far, far hops of f and near hops of h
seconds:
2 (d - 1) / d · bytes / (k · NIC rate) + 2 (d - 1) f + 2 h.

Axes: E edge, M member, N domain.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.direct import Direct, TwoShot, between_all
from moecast.sim.collectives.edges import Edges, joined
from moecast.sim.collectives.groups import Group
from moecast.sim.collectives.protocols import Protocol
from moecast.sim.collectives.ring import ring_edges

Int = npt.NDArray[np.int64]


class ByDomain:
    """Reduce-scatter inside, a ring between ranks of one index, all-gather inside."""

    name = "hierarchical"
    operations = ("all-reduce", "reduce-scatter", "all-gather")

    def supports(self, operation: str, group: Group) -> bool:
        """Take groups with as many ranks in each of their domains."""
        return operation in self.operations and group.is_even

    def edges(self, operation: str, group: Group, protocol: Protocol) -> Edges:
        """Lay out the levels, each fed by the one before; inside one domain there is but one level."""
        if group.in_one_domain:
            kind = TwoShot() if operation == "all-reduce" else Direct()
            return kind.edges(operation, group, protocol)
        rails_NM = np.array(group.by_domain())
        levels = []
        if operation != "all-gather":
            levels.append(_inside(group, rails_NM, protocol))
        levels.append(_between(group, rails_NM, 2 if operation == "all-reduce" else 1, protocol))
        if operation != "reduce-scatter":
            levels.append(_inside(group, rails_NM, protocol))
        return _fed(levels)


def _inside(group: Group, rails_NM: Int, protocol: Protocol) -> Edges:
    """Each rank sends each other of its domain the bytes of one index."""
    size = rails_NM.shape[1]
    if size == 1:
        nothing = np.empty(0, np.int64)
        return Edges(source_E=nothing, destination_E=nothing, part_E=np.empty(0), latency_E=np.empty(0))
    inside = [Group(sites=group.sites, ranks_M=ranks_M) for ranks_M in rails_NM]
    return joined([between_all(domain, part=1 / size, rounds=1, protocol=protocol) for domain in inside])


def _between(group: Group, rails_NM: Int, times: int, protocol: Protocol) -> Edges:
    """Rings of the ranks of one index."""
    domains, size = rails_NM.shape
    rounds = times * (domains - 1)
    return joined([ring_edges(group, rail_N, rounds / (domains * size), rounds, protocol) for rail_N in rails_NM.T])


def _fed(levels: list[Edges]) -> Edges:
    """Join levels: an edge from a rank is fed by those of the level before that end at it."""
    edges, first = joined(levels), np.concatenate([[0], np.cumsum([level.n for level in levels])])
    pairs = []
    for before, after, at, then in zip(levels, levels[1:], first, first[1:], strict=False):
        child, parent = np.nonzero(after.source_E[:, None] == before.destination_E[None, :])
        pairs.append((child + then, parent + at))
    return Edges(
        source_E=edges.source_E,
        destination_E=edges.destination_E,
        part_E=edges.part_E,
        latency_E=edges.latency_E,
        child_R=np.concatenate([child for child, _ in pairs]),
        parent_R=np.concatenate([parent for _, parent in pairs]),
    )
