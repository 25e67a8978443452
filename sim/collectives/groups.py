"""The groups of ranks that run one collective at once, and what a hop between two of them takes.

Axes: D group, M member of a group, E edge (bytes from one rank to another).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.sim.collectives.protocols import Protocol
from moecast.sim.sites import Sites

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """The ranks of one group in its order, and where they stand."""

    sites: Sites
    ranks_M: Int

    @property
    def n(self) -> int:
        """How many ranks."""
        return len(self.ranks_M)

    def by_domain(self) -> list[Int]:
        """Its ranks domain by domain, domains and ranks in the group's order."""
        domain_M = self.sites.domain_G[self.ranks_M]
        return [self.ranks_M[domain_M == domain] for domain in dict.fromkeys(domain_M.tolist())]

    @property
    def in_one_domain(self) -> bool:
        """Whether NVLink joins all of them."""
        return len(set(self.sites.domain_G[self.ranks_M].tolist())) == 1

    @property
    def most_away(self) -> int:
        """Members in other domains than one's own, the most of all members."""
        return self.n - min(len(ranks) for ranks in self.by_domain())

    @property
    def is_even(self) -> bool:
        """Whether each of its domains holds as many of its ranks."""
        return len({len(ranks) for ranks in self.by_domain()}) == 1

    def near_E(self, source_E: Int, destination_E: Int) -> npt.NDArray[np.bool_]:
        """Whether an edge stays inside a domain."""
        near_E: npt.NDArray[np.bool_] = self.sites.domain_G[source_E] == self.sites.domain_G[destination_E]
        return near_E

    def hops_E(self, protocol: Protocol, source_E: Int, destination_E: Int) -> Float:
        """Seconds from a last byte's departure to its arrival, as the protocol has it."""
        path_E = self.sites.routes(source_E.astype(np.int32), destination_E.astype(np.int32)).latency_F
        near_E = path_E if protocol.near_hop_s is None else np.full(len(path_E), protocol.near_hop_s)
        far_E = np.maximum(path_E, protocol.far_hop_s or 0.0)
        hops_E: Float = np.where(self.near_E(source_E, destination_E), near_E, far_E)
        return hops_E


def groups_of(sites: Sites, groups_DM: npt.ArrayLike) -> Iterator[Group]:
    """Give the groups of an array of ranks [D, M], one after another.

    Raises
    ------
    ValueError, TypeError
        Not ranks of the sites, fewer than two in a group, or one rank twice.
    """
    checked_DM = whole_numbers("groups_DM", groups_DM, most=sites.n_ranks - 1, shape=(None, None))
    if checked_DM.shape[1] < 2 or not len(checked_DM):
        raise ValueError(f"groups_DM: shape {list(checked_DM.shape)}, must be groups of at least two ranks")
    if len(np.unique(checked_DM)) < checked_DM.size:
        raise ValueError("groups_DM: a rank is named twice")
    return (Group(sites=sites, ranks_M=ranks_M) for ranks_M in checked_DM)


def numbers_of_groups(sites: Sites, groups_DM: npt.ArrayLike) -> Int32:
    """The number of each rank's group [G]; those in none have numbers of their own behind."""
    members_DM = np.asarray(groups_DM)
    number_G = np.full(sites.n_ranks, -1, np.int32)
    number_G[members_DM] = np.arange(len(members_DM), dtype=np.int32)[:, None]
    alone = np.flatnonzero(number_G < 0)
    number_G[alone] = len(members_DM) + np.arange(len(alone), dtype=np.int32)
    return number_G
