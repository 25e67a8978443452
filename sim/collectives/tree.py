"""The double binary tree: two trees with half of the bytes each, in which a leaf of one is inside the other.

Bytes are added up on the way to the root and come back from it. Every rank sends and gets about
twice the bytes, as in a ring, but the last chunk makes only about 2 log2(n) hops (Sanders, Speck
and Träff 2009; NCCL 2.4). Between domains each member index has trees of its own over its ranks of
each domain, and a chain inside the domain leads to them.

Closed form, n ≥ 4 a power of two, one domain, links of rate r and hops of h: 2 bytes / r + 2
log2(n) h.

Axes: E edge, M member, U unit of a tree (a rank, or a domain's ranks).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.edges import Edges, joined
from moecast.sim.collectives.groups import Group
from moecast.sim.collectives.protocols import Protocol

Int = npt.NDArray[np.int64]


class Tree:
    """Two trees over the ranks of a domain, or for each member index over the domains."""

    name = "tree"
    operations = ("all-reduce",)

    def supports(self, operation: str, group: Group) -> bool:  # noqa: ARG002
        """Take an all-reduce in any group."""
        return operation in self.operations

    def edges(self, operation: str, group: Group, protocol: Protocol) -> Edges:  # noqa: ARG002
        """Lay out the edges of all trees, up and down."""
        channels = _chains(group)
        part = 1 / (2 * len(channels))
        parents = double_tree(len(channels[0]))
        return joined([_tree(group, chains, parent_U, part, protocol) for chains in channels for parent_U in parents])


def _chains(group: Group) -> list[list[Int]]:
    """For each channel, the ranks of each unit, the one that is in the tree first."""
    domains = group.by_domain()
    if len(domains) == 1:
        return [[group.ranks_M[place : place + 1] for place in range(group.n)]]
    channels = min(len(ranks) for ranks in domains)
    return [[np.roll(ranks, -channel) for ranks in domains] for channel in range(channels)]


def _tree(group: Group, chains: Sequence[Int], parent_U: Int, part: float, protocol: Protocol) -> Edges:
    units = np.flatnonzero(parent_U >= 0).tolist()
    child = [ranks[1:] for ranks in chains] + [chains[unit][:1] for unit in units]
    parent = [ranks[:-1] for ranks in chains] + [chains[int(parent_U[unit])][:1] for unit in units]
    child_E, parent_E = np.concatenate(child), np.concatenate(parent)
    up_s = _depth(group.ranks_M, child_E, parent_E, group.hops_E(protocol, child_E, parent_E).tolist())
    down_s = _depth(group.ranks_M, child_E, parent_E, group.hops_E(protocol, parent_E, child_E).tolist())
    n = len(child_E)
    return Edges(
        source_E=np.concatenate([child_E, parent_E]),
        destination_E=np.concatenate([parent_E, child_E]),
        part_E=np.full(2 * n, part),
        latency_E=np.repeat([up_s, up_s + down_s], n),
    )


def _depth(ranks_M: Int, child_E: Int, parent_E: Int, hop_E: list[float]) -> float:
    """Seconds of the longest way from a rank to the root."""
    above = {int(c): (int(p), hop) for c, p, hop in zip(child_E, parent_E, hop_E, strict=True)}
    longest = 0.0
    for rank in ranks_M.tolist():
        at, way = rank, 0.0
        while at in above:
            at, hop = above[at]
            way += hop
        longest = max(longest, way)
    return longest


def double_tree(n: int) -> list[Int]:
    """The parent of each of n units in both trees, -1 for the roots.

    In the first, odd units are leaves. The second is its mirror image where n is even, and shifted
    by one where n is odd, so that none but the last two units are inside both.
    """
    first_U = np.array([_parent(unit, n) for unit in range(n)], np.int64)

    def renamed(name: Callable[[int], int]) -> Int:
        parent_U = np.full(n, -1, np.int64)
        for unit, parent in enumerate(first_U.tolist()):
            parent_U[name(unit)] = name(parent) if parent >= 0 else -1
        return parent_U

    second_U = renamed(lambda unit: n - 1 - unit) if n % 2 == 0 else renamed(lambda unit: (unit + 1) % n)
    return [first_U, second_U]


def _parent(unit: int, n: int) -> int:
    """The unit above in a binary tree in which unit 0 is the root and a unit's lowest bit set is its height."""
    if unit == 0:
        return -1
    height = unit & -unit
    above = (unit ^ height) | (height << 1)
    return above if above < n else unit ^ height
