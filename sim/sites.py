"""Where the ranks of a plan stand in a cluster.

Axes: G rank, S source rank, N domain.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.errors import MoecastError
from moecast.sim.plan import Plan
from moecast.topology import Cluster, Routes

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sites:
    """The GPU, the domain and the EP group of each rank, and who relays between domains.

    Parameters
    ----------
    cluster
        The cluster the ranks stand in.
    gpu_G, domain_G, node_G, group_G
        GPU, NVLink domain, host and EP group of each rank.
    relay_SN
        The rank of S's EP group that passes S's copies on inside domain N: the one whose GPU has the same index in
        its domain as S's; where the group has none there, the (index mod n)-th of its n ranks in that domain; -1
        where it has no rank there at all. In its own domain a rank is its own relay.
    seed
        Of the ECMP hash.

    Raises
    ------
    ValueError, TypeError
        Arrays of different lengths, or a GPU, domain, host, EP group or relay that is not there.
    """

    cluster: Cluster
    gpu_G: Int32
    domain_G: Int32
    node_G: Int32
    group_G: Int32
    relay_SN: Int32
    seed: int
    _routes: dict[bytes, Routes] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        gpu_G = whole_numbers("gpu_G", self.gpu_G, most=self.cluster.n_gpus - 1, dtype=np.int32)
        ranks, domains = len(gpu_G), self.cluster.n_domains
        checked = {
            "gpu_G": gpu_G,
            "domain_G": whole_numbers("domain_G", self.domain_G, most=domains - 1, shape=(ranks,), dtype=np.int32),
            "node_G": whole_numbers("node_G", self.node_G, most=np.iinfo(np.int32).max, shape=(ranks,), dtype=np.int32),
            "group_G": whole_numbers("group_G", self.group_G, most=ranks - 1, shape=(ranks,), dtype=np.int32),
            "relay_SN": whole_numbers(
                "relay_SN", self.relay_SN, least=-1, most=ranks - 1, shape=(ranks, domains), dtype=np.int32
            ),
        }
        for name, array in checked.items():
            object.__setattr__(self, name, array)

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
        group_G = plan.layout.group_G
        return cls(
            cluster=cluster,
            gpu_G=gpu_G,
            domain_G=domain_G,
            node_G=cluster.node_of_gpu_G[gpu_G].astype(np.int32),
            group_G=group_G,
            relay_SN=_relays(group_G, domain_G, cluster.index_in_domain_G[gpu_G], cluster.n_domains),
            seed=seed,
        )

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
    def n_domains(self) -> int:
        """N: domains of the cluster, also those without a rank."""
        return int(self.relay_SN.shape[1])

    @property
    def crosses_domains(self) -> bool:
        """Whether some EP group has ranks in more than one domain."""
        return bool(((self.relay_SN >= 0).sum(1) > 1).any())


def _relays(group_G: Int32, domain_G: Int32, index_G: Int32, n_domains: int) -> Int32:
    relay_SN = np.full((len(group_G), n_domains), -1, np.int32)
    for group in np.unique(group_G):
        members = np.flatnonzero(group_G == group)
        for domain in np.unique(domain_G[members]):
            there = members[domain_G[members] == domain]
            there = there[np.argsort(index_G[there])]
            by_index = {int(index_G[rank]): rank for rank in there}
            for source in members:
                index = int(index_G[source])
                relay = source if domain_G[source] == domain else by_index.get(index, there[index % len(there)])
                relay_SN[source, domain] = relay
    return relay_SN
