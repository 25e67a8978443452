"""Where the ranks of a plan stand in a cluster.

Axes: G rank, S source rank, D destination rank, M member of S's EP group, N domain of the cluster,
A domain in which S's EP group has ranks, in the cluster's order.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.errors import MoecastError
from moecast.sim.plan import Plan
from moecast.topology import Cluster, Hardware, Routes

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sites:
    """The GPU, the domain and the EP group of each rank, and who relays between domains.

    Ranks that share experts by width (expert tensor parallelism) exchange tokens apart: those of
    one place in it with each other. What a rank sends is counted by member of its EP group and by
    domain that the group stands in, so that counts grow with the ranks and not with their square.

    Parameters
    ----------
    cluster
        The cluster the ranks stand in.
    gpu_G, domain_G, node_G, group_G, member_G
        GPU, NVLink domain, host and EP group of each rank, and its place in the group.
    peer_SM
        The ranks that S exchanges tokens with, itself included, member by member.
    place_SM
        Which of the group's domains each of them stands in.
    relay_SA
        The rank of S's EP group that passes S's copies on inside domain A: the one whose GPU has
        the same index in its domain as S's; where the group has none there, the (index mod n)-th of
        its n ranks in that domain. In its own domain a rank is its own relay; -1 beyond the domains
        of its group.
    seed
        Of the ECMP hash.

    Raises
    ------
    ValueError, TypeError
        Arrays of different lengths, or a GPU, domain, host, EP group, peer or relay that is not
        there.
    """

    cluster: Cluster
    gpu_G: Int32
    domain_G: Int32
    node_G: Int32
    group_G: Int32
    member_G: Int32
    peer_SM: Int32
    place_SM: Int32
    relay_SA: Int32
    seed: int
    _routes: dict[bytes, Routes] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        gpu_G = whole_numbers("gpu_G", self.gpu_G, most=self.cluster.n_gpus - 1, dtype=np.int32)
        ranks, members = len(gpu_G), np.shape(self.peer_SM)[-1] if np.ndim(self.peer_SM) else 0
        places = np.shape(self.relay_SA)[-1] if np.ndim(self.relay_SA) else 0
        most = {
            "domain_G": self.cluster.n_domains - 1,
            "node_G": np.iinfo(np.int32).max,
            "group_G": ranks - 1,
            "member_G": members - 1,
            "peer_SM": ranks - 1,
            "place_SM": places - 1,
            "relay_SA": ranks - 1,
        }
        object.__setattr__(self, "gpu_G", gpu_G)
        for name, highest in most.items():
            shape = (ranks, *({"M": (members,), "A": (places,)}.get(name[-1], ())))
            least = -1 if name == "relay_SA" else 0
            array = getattr(self, name)
            checked = whole_numbers(name, array, least=least, most=highest, shape=shape, dtype=np.int32)
            object.__setattr__(self, name, checked)

    @property
    def groups_leave_domains(self) -> bool:
        """Whether an EP group stands in more than one domain."""
        return self.relay_SA.shape[1] > 1

    @property
    def most_away(self) -> int:
        """Members of an EP group in other domains than one's own, the most of all ranks."""
        sizes_G = np.bincount(self.group_G)[self.group_G]
        place_G = self.group_G.astype(np.int64) * (int(self.domain_G.max()) + 1) + self.domain_G
        _, at_G, here = np.unique(place_G, return_inverse=True, return_counts=True)
        return int((sizes_G - here[at_G]).max())

    @classmethod
    def of(cls, cluster: Cluster, plan: Plan, *, seed: int = 0) -> Sites:
        """Lay the ranks of a plan out.

        Raises
        ------
        MoecastError
            The plan names a GPU that the cluster does not have, or one GPU twice.
        """
        for rank, gpu in enumerate(plan.gpu_of_rank):
            if not 0 <= gpu < cluster.n_gpus:
                raise MoecastError(
                    f"{cluster.name} has GPUs 0 to {cluster.n_gpus - 1}", field=f"gpu_of_rank[{rank}]", value=gpu
                )
        if len(set(plan.gpu_of_rank)) < plan.ranks:
            raise MoecastError("two ranks stand on one GPU", field="gpu_of_rank")
        gpu_G = np.array(plan.gpu_of_rank, np.int32)
        domain_G = cluster.domain_of_gpu_G[gpu_G].astype(np.int32)
        place_SM, relay_SA = _relays(plan.layout.peers("ep"), domain_G, cluster.index_in_domain_G[gpu_G])
        return cls(
            cluster=cluster,
            gpu_G=gpu_G,
            domain_G=domain_G,
            node_G=cluster.node_of_gpu_G[gpu_G].astype(np.int32),
            group_G=plan.layout.group_G,
            member_G=plan.layout.member_G,
            peer_SM=plan.layout.peers_of_ranks("ep"),
            place_SM=place_SM,
            relay_SA=relay_SA,
            seed=seed,
        )

    def on(self, hardware: Hardware) -> Sites:
        """The same places with GPUs of another hardware table; paths that one finds the other knows."""
        other = copy(self)
        object.__setattr__(other, "cluster", self.cluster.with_hardware(hardware))
        return other

    def routes(self, source_F: Int32, destination_F: Int32) -> Routes:
        """Paths between ranks; kept, since dispatch, combine and others send between the same pairs."""
        key = np.concatenate([source_F, destination_F]).astype(np.int32).tobytes()
        if key not in self._routes:
            found = self.cluster.routes(self.gpu_G[source_F], self.gpu_G[destination_F], seed=self.seed)
            self._routes[key] = found
        return self._routes[key]

    @property
    def n_ranks(self) -> int:
        """G."""
        return len(self.gpu_G)

    @property
    def n_members(self) -> int:
        """M: members of an EP group."""
        return int(self.peer_SM.shape[1])

    @property
    def near_members(self) -> int:
        """The most members of an EP group that stand in one domain."""
        return int((self.place_SM == self.own_place_G[:, None]).sum(1).max())

    @property
    def n_places(self) -> int:
        """A: the most domains that an EP group stands in."""
        return int(self.relay_SA.shape[1])

    @property
    def crosses_domains(self) -> bool:
        """Whether some EP group has ranks in more than one domain."""
        return bool(((self.relay_SA >= 0).sum(1) > 1).any())

    @property
    def own_place_G(self) -> Int32:
        """Which of its group's domains each rank stands in."""
        return np.take_along_axis(self.place_SM, self.member_G[:, None], axis=1)[:, 0]

    def to_ranks(self, counts_SM: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[S, D]: counts by member of the source's EP group as counts by rank, none outside the group."""
        counts_SD = np.zeros((self.n_ranks, self.n_ranks), counts_SM.dtype)
        np.put_along_axis(counts_SD, self.peer_SM.astype(np.int64), counts_SM, axis=1)
        return counts_SD

    def to_domains(self, counts_SA: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[S, N]: counts by domain of the source's EP group as counts by domain of the cluster."""
        counts_SN = np.zeros((self.n_ranks, self.cluster.n_domains), counts_SA.dtype)
        source, place = np.nonzero(self.relay_SA >= 0)
        counts_SN[source, self.domain_G[self.relay_SA[source, place]]] = counts_SA[source, place]
        return counts_SN


def _relays(peer_XM: Int32, domain_G: Int32, index_G: Int32) -> tuple[Int32, Int32]:
    """Find which of its group's domains each peer stands in, and the relays, for each row of peers."""
    there_X = [np.unique(domain_G[peers]) for peers in peer_XM]
    place_SM = np.zeros((len(domain_G), peer_XM.shape[1]), np.int32)
    relay_SA = np.full((len(domain_G), max(map(len, there_X))), -1, np.int32)
    for peers, domains in zip(peer_XM, there_X, strict=True):
        place_SM[peers] = np.searchsorted(domains, domain_G[peers])
        for place, domain in enumerate(domains):
            there = peers[domain_G[peers] == domain]
            there = there[np.argsort(index_G[there])]
            by_index = {int(index_G[rank]): rank for rank in there}
            for source in peers:
                index = int(index_G[source])
                relay = source if domain_G[source] == domain else by_index.get(index, there[index % len(there)])
                relay_SA[source, place] = relay
    return place_SM, relay_SA
