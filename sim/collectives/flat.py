"""The flat all-to-all: every copy goes straight from the rank that has it to the rank that needs it.

Axes: S source rank, D destination rank.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.carriers import Carrier, lay_out
from moecast.sim.collectives.modes import Mode
from moecast.sim.collectives.template import FlowTemplate, Legs
from moecast.sim.sites import Sites

Int = npt.NDArray[np.int64]


class FlatAllToAll:
    """One flow per pair of ranks of an EP group, for one copy per choice or per distinct rank."""

    name = "flat"

    def supports(self, mode: Mode, sites: Sites) -> bool:
        """Take every mode, but leave copies per domain to the relays where a group has more than one domain."""
        return not (mode.relayed and sites.crosses_domains)

    def dispatch(self, sites: Sites, mode: Mode, copy_bytes: float, carrier: Carrier | None = None) -> FlowTemplate:
        """Lay out the way to the experts: the destination waits."""
        source, destination, count = _pairs(sites)
        legs = Legs.direct(source, destination, count)
        return lay_out(sites, legs, copy_bytes, carrier, messages=mode.messages)

    def combine(self, sites: Sites, mode: Mode, copy_bytes: float, carrier: Carrier | None = None) -> FlowTemplate:
        """Lay out the way back; the counts are those of the dispatch, (home, server).

        Flows stand in the order of who sends them, as in the dispatch: all groups' pairs are its own, and so are paths.
        """
        home, server, count = _pairs(sites)
        order = np.lexsort((home, server))
        legs = Legs.direct(server[order], home[order], count[order])
        return lay_out(sites, legs, copy_bytes, carrier, messages=mode.messages)


def _pairs(sites: Sites) -> tuple[Int, Int, Int]:
    """Pairs of different ranks of one EP group, and where the counts of each stand."""
    source, destination = np.arange(sites.n_ranks).repeat(sites.n_members), sites.peer_SM.ravel().astype(np.int64)
    count = np.flatnonzero(source != destination)
    return source[count], destination[count], count
