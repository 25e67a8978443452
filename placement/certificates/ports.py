"""What a copy costs the links of one rank alone, of those that all copies into it, or out of it, must cross.

Axes: R rank, F flow, J link, X (flow, link) pair, N class of flows (near: inside a domain, or far).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moecast.sim.collectives import FlowTemplate
    from moecast.sim.placed_model import PlacedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What is true of every rank's port.

    Parameters
    ----------
    copy_s
        Seconds that one copy keeps the rank's own links busy, at the least.
    latency_s
        From a last byte's departure to its arrival, at the least.
    """

    copy_s: float
    latency_s: float

    @classmethod
    def into(cls, placed: PlacedModel, flows: FlowTemplate) -> Port:
        """Of the flows that end at a rank."""
        return cls._of(placed, flows, flows.legs.destination_F)

    @classmethod
    def out_of(cls, placed: PlacedModel, flows: FlowTemplate) -> Port:
        """Of the flows that begin at a rank."""
        return cls._of(placed, flows, flows.legs.source_F)

    @classmethod
    def _of(cls, placed: PlacedModel, flows: FlowTemplate, end_F: npt.NDArray[np.int32]) -> Port:
        """Near and far flows have links of their own: together they carry at most the sum of both rates.

        Of the links that all flows of a class at a rank cross, the one that is slowest to carry a
        copy of any of them.
        """
        legs, domain_G = flows.legs, placed.sites.domain_G
        far_F = (domain_G[legs.source_F] != domain_G[legs.destination_F]).astype(np.int64)
        class_F = 2 * end_F.astype(np.int64) + far_F
        flow_X = np.repeat(np.arange(len(class_F)), np.diff(flows.offsets_F1))
        part_F = np.ones(len(class_F)) if legs.part_F is None else legs.part_F
        busy_X = flows.copy_bytes * part_F[flow_X] * flows.share_X / placed.capacity_J[flows.link_X]
        pair_X = class_F[flow_X] * len(placed.capacity_J) + flows.link_X
        pairs, place_X, crossed = np.unique(pair_X, return_inverse=True, return_counts=True)
        least = np.full(len(pairs), np.inf)
        np.minimum.at(least, place_X, busy_X)
        class_of_pair = pairs // len(placed.capacity_J)
        size_N = np.bincount(class_F, minlength=2 * placed.sites.n_ranks)
        copy_N = np.zeros(len(size_N))
        by_all = crossed == size_N[class_of_pair]  # a flow crosses a link once
        np.maximum.at(copy_N, class_of_pair[by_all], least[by_all])
        with np.errstate(divide="ignore"):
            rate_N = np.where(size_N > 0, 1 / copy_N, 0.0)
        rate_R = rate_N.reshape(-1, 2).sum(axis=1)
        copy_R = 1 / rate_R[rate_R > 0]
        return cls(
            copy_s=float(copy_R.min(initial=np.inf)) if len(copy_R) else 0.0,
            latency_s=float(flows.latency_F.min()) if len(flows.latency_F) else 0.0,
        )
