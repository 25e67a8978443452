"""The two legs of a relayed exchange, each an exchange of its own: between domains, and inside them.

In one exchange a relay passes copies on chunk by chunk, and both legs end nearly together. As two
exchanges the second leg of a rank starts when all of its first is there, and other work may stand
between: a schedule that sends one part of the tokens between domains while it spreads another
inside them has each network busy with its own.

Axes: F flow, X (flow, link) pair, G rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.template import PRESENCE, CountedFlows, FlowTemplate, Legs
from moecast.sim.program import Exchange

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leg:
    """A part of an exchange, and whether any of it leaves its domain."""

    exchange: Exchange
    between: bool


class LegsOfTemplates:
    """Cuts exchanges into legs; each template is looked at once.

    Parameters
    ----------
    domain_G
        The domain of each rank.
    """

    def __init__(self, domain_G: Int32) -> None:
        self._domain_G = domain_G
        self._known: dict[FlowTemplate, tuple[tuple[FlowTemplate, bool], ...]] = {}

    def of(self, exchange: Exchange) -> tuple[Leg, ...]:
        """Give an exchange's legs in the order in which they run, each with the setup and the barrier of the whole.

        Going out, copies first go to their relays; on the way back, partial sums first meet at
        them. What no relay carries is one leg, and so is an exchange of counts, between domains.
        """
        flows = exchange.flows
        if not isinstance(flows, CountedFlows):
            return (Leg(exchange=exchange, between=True),)
        if flows.template not in self._known:
            self._known[flows.template] = tuple(_split(flows.template, self._domain_G))
        return tuple(
            Leg(exchange=replace(exchange, flows=template.counted(flows.counts_C)), between=between)
            for template, between in self._known[flows.template]
        )


def _split(template: FlowTemplate, domain_G: Int32) -> list[tuple[FlowTemplate, bool]]:
    legs = template.legs
    far_F = domain_G[legs.source_F] != domain_G[legs.destination_F]
    if not len(legs.child_R) or not far_F.any():
        return [(template, bool(far_F.any()))]
    near_F = ~far_F & (legs.count_F != PRESENCE)
    far, near = (_only(template, np.flatnonzero(of_F)) for of_F in (far_F, near_F))
    goes_out = bool(far_F[legs.parent_R].any())  # what comes from afar feeds what is passed on
    return [(far, True), (near, False)] if goes_out else [(near, False), (far, True)]


def _only(template: FlowTemplate, chosen: npt.NDArray[np.int64]) -> FlowTemplate:
    """Some flows of a template, fed by none: who they go to waits for them."""
    legs = template.legs
    direct = Legs.direct(legs.source_F[chosen], legs.destination_F[chosen], legs.count_F[chosen])
    links_F = np.diff(template.offsets_F1)
    kept_X = np.repeat(np.isin(np.arange(len(links_F)), chosen), links_F)
    return replace(
        template,
        legs=replace(direct, part_F=None if legs.part_F is None else legs.part_F[chosen]),
        offsets_F1=np.concatenate([[0], np.cumsum(links_F[chosen])]),
        link_X=template.link_X[kept_X],
        share_X=template.share_X[kept_X],
        latency_F=template.latency_F[chosen],
        pace_F=template.pace_F[chosen],
        parent_offsets_F1=np.zeros(len(chosen) + 1, np.int64),
        parent_R=np.zeros(0, template.parent_R.dtype),
    )
