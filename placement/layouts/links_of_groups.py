"""What the links into a GPU carry at most, and what a message takes at least: for lower bounds on exchanges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.layouts.serving_layout import SEQUENTIAL, ServingLayout
from moecast.sim.placed_model import PlacedModel

if TYPE_CHECKING:
    from moecast.placement.layouts.serving_question import ServingQuestion

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

NEAR, FAR = "nvlink-in", "nic-in"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinksOfGroup:
    """The links of an EP group's ranks.

    Parameters
    ----------
    near_Bps, far_Bps
        Bytes/s into a GPU from its own domain, and from others; both together where copies are relayed.
    dispatch_bytes, combine_bytes
        Of a copy.
    latency_s, far_latency_s
        The least of any flow of a dispatch, and of a combine; of any between domains.
    domain_ranks
        Successive ranks of a domain that are of one EP group, at the most.
    """

    near_Bps: float
    far_Bps: float
    dispatch_bytes: float
    combine_bytes: float
    latency_s: tuple[float, float]
    far_latency_s: tuple[float, float]
    domain_ranks: int

    @classmethod
    def of(cls, question: ServingQuestion, layout: ServingLayout, phase: str) -> LinksOfGroup:
        """Those of a layout's first pipeline stage; all stages stand alike."""
        # Whether its ranks share tokens or sequences says nothing of the links between them.
        alone = replace(layout, tp=1, cp=1, dp=layout.ranks_of_stage, pp=1, microbatches=1, schedule=SEQUENTIAL)
        plan = replace(alone, sequence_parallel=True).plan(question.model)
        placed = PlacedModel.of(question.cluster, question.model, plan, phase=phase)
        cluster, flows = question.cluster, (placed.dispatch_flows, placed.combine_flows)
        kinds = np.array(cluster.link_kind_J)
        near, far = (float(cluster.capacity_J[kinds == kind].max(initial=0.0)) for kind in (NEAR, FAR))
        domain_G = placed.sites.domain_G
        ends = [(each.legs.source_F, each.legs.destination_F) for each in flows]
        least = [
            (_least(each.latency_F, one != other), _least(each.latency_F, domain_G[one] != domain_G[other]))
            for each, (one, other) in zip(flows, ends, strict=True)
        ]
        sizes = np.unique(placed.sites.domain_G, return_counts=True)[1]
        return cls(
            near_Bps=near,
            far_Bps=far,
            dispatch_bytes=flows[0].copy_bytes,
            combine_bytes=flows[1].copy_bytes,
            latency_s=(least[0][0], least[1][0]),
            far_latency_s=(least[0][1], least[1][1]),
            domain_ranks=int(sizes.max()),
        )


def _least(latency_F: Float, chosen_F: Bool) -> float:
    """The least latency of some flows; nothing where there are none."""
    return float(latency_F[chosen_F].min()) if chosen_F.any() else 0.0
