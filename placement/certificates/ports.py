"""What a copy costs the links of one rank alone, of those that all copies into it, or out of it, must cross.

Axes: R rank, F flow, J link, X (flow, link) pair, N class of flows (near: inside a domain, or far).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moecast.sim.collectives import FlowTemplate
    from moecast.sim.placed_model import PlacedModel

Reach = Literal["any", "near", "far"]
End = Literal["source", "destination"]


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
    def of(cls, placed: PlacedModel, flows: FlowTemplate, end: End, reach: Reach) -> Port:
        """Of the flows that begin or end at a rank: those that stay in its domain, those that do not, or all.

        Near and far flows have links of their own: together they carry at most the sum of both
        rates. Of the links that all flows of a class at a rank cross, the one that is slowest to
        carry a copy of any of them. Flows inside one rank are none.
        """
        legs, domain_G = flows.legs, placed.sites.domain_G
        end_F = legs.source_F if end == "source" else legs.destination_F
        sent_F = legs.source_F != legs.destination_F
        far_F = domain_G[legs.source_F] != domain_G[legs.destination_F]
        class_F = 2 * end_F.astype(np.int64) + far_F
        asked_F = sent_F & {"any": sent_F, "near": ~far_F, "far": far_F}[reach]
        size_N = np.bincount(class_F[asked_F], minlength=2 * placed.sites.n_ranks)
        rate_N = _rates(placed, flows, np.where(asked_F, class_F, -1), size_N)
        rate_R = rate_N.reshape(-1, 2).sum(axis=1)
        copy_R = 1 / rate_R[rate_R > 0]
        latency_F = flows.latency_F[asked_F]
        return cls(
            copy_s=float(copy_R.min()) if len(copy_R) else 0.0,
            latency_s=float(latency_F.min()) if len(latency_F) else 0.0,
        )


def _rates(
    placed: PlacedModel, flows: FlowTemplate, class_F: npt.NDArray[np.int64], size_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Copies a second of each class of flows, at the most; `class_F` is -1 for flows that are not asked about."""
    part_F = np.ones(len(class_F)) if flows.legs.part_F is None else flows.legs.part_F
    flow_X = np.repeat(np.arange(len(class_F)), np.diff(flows.offsets_F1))
    kept_X = class_F[flow_X] >= 0
    flow_X, link_X = flow_X[kept_X], flows.link_X[kept_X]
    links = len(placed.capacity_J)
    busy_X = flows.copy_bytes * part_F[flow_X] * flows.share_X[kept_X] / placed.capacity_J[link_X]
    pairs, place_X, crossed = np.unique(class_F[flow_X] * links + link_X, return_inverse=True, return_counts=True)
    least = np.full(len(pairs), np.inf)
    np.minimum.at(least, place_X, busy_X)
    class_of_pair = pairs // links
    copy_N = np.zeros(len(size_N))
    by_all = crossed == size_N[class_of_pair]  # a flow crosses a link once
    np.maximum.at(copy_N, class_of_pair[by_all], least[by_all])
    with np.errstate(divide="ignore"):
        return np.where(size_N > 0, 1 / copy_N, 0.0)
