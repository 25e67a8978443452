"""The flat all-to-all: every copy goes straight from the rank that has it to the rank that needs it.

Axes: S source rank, D destination rank.
"""

from __future__ import annotations

import numpy as np

from moecast.sim.collectives.modes import Mode
from moecast.sim.collectives.template import FlowTemplate, Legs
from moecast.sim.sites import Sites


class FlatAllToAll:
    """One flow per pair of ranks of an EP group, for one copy per choice or per distinct rank."""

    name = "flat"

    def supports(self, mode: Mode, layout: Sites) -> bool:
        """Take every mode, but leave copies per domain to the relays where a group has more than one domain."""
        return not (mode.relayed and layout.crosses_domains)

    def dispatch(self, layout: Sites, mode: Mode, copy_bytes: float) -> FlowTemplate:
        """Lay out the way to the experts: the destination waits."""
        source, destination = _pairs(layout)
        legs = Legs.direct(source, destination, source * layout.n_ranks + destination)
        return FlowTemplate.of(layout, legs, copy_bytes, messages=mode.messages)

    def combine(self, layout: Sites, mode: Mode, copy_bytes: float) -> FlowTemplate:
        """Lay out the way back; the counts are those of the dispatch, (home, server)."""
        home, server = _pairs(layout)
        legs = Legs.direct(server, home, home * layout.n_ranks + server)
        return FlowTemplate.of(layout, legs, copy_bytes, messages=mode.messages)


def _pairs(layout: Sites) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different ranks of one EP group."""
    same_group = layout.group_G[:, None] == layout.group_G[None, :]
    source, destination = np.nonzero(same_group & ~np.eye(layout.n_ranks, dtype=bool))
    return source, destination
