"""What the links into and out of a GPU carry at most: for lower bounds, and for guesses of what is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moecast.topology import Cluster

NEAR, FAR = "nvlink-in", "nic-in"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The ports of the fastest GPU of a cluster.

    Parameters
    ----------
    near_Bps, far_Bps
        Bytes/s into it from its own domain, and from others; infinite where there is no such link.
    domain_gpus
        GPUs of a domain, where all have as many; 0 elsewhere.
    """

    near_Bps: float
    far_Bps: float
    domain_gpus: int

    @property
    def both_Bps(self) -> float:
        """Bytes/s into a GPU over all its links."""
        return self.near_Bps + self.far_Bps

    @classmethod
    def of(cls, cluster: Cluster) -> Ports:
        """Those of a cluster."""
        kinds, capacity_J = np.array(cluster.link_kind_J), cluster.capacity_J
        Bps = []
        for kind in (NEAR, FAR):
            there = capacity_J[kinds == kind]
            each = -(-len(there) // cluster.n_gpus)  # links of a GPU
            Bps.append(float(there.max()) * each if len(there) else np.inf)
        sizes = np.unique(np.bincount(cluster.domain_of_gpu_G))
        return cls(near_Bps=Bps[0], far_Bps=Bps[1], domain_gpus=int(sizes[0]) if len(sizes) == 1 else 0)
