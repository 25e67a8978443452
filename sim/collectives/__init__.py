"""Collectives: from the counts of a layer to the flows that carry its dispatch and combine.

Two families: those that carry copies of tokens to their experts and back (`COLLECTIVES`, by
dispatch mode), and those on the bytes of a group, such as an all-reduce (`KINDS`, by operation; see
`moecast.sim.collectives.operations`).

To add one: a file with a class that satisfies `Collective` or `Kind`, and an entry in its list.
"""

from __future__ import annotations

from typing import Protocol

from moecast.sim.collectives.carriers import Carried, Carrier
from moecast.sim.collectives.flat import FlatAllToAll
from moecast.sim.collectives.hierarchical import HierarchicalAllToAll
from moecast.sim.collectives.modes import DEFAULT_MODE, MODES, Mode, mode_of
from moecast.sim.collectives.operations import (
    KINDS,
    OPERATIONS,
    all_gather,
    all_reduce,
    bus_factor,
    collective_template,
    reduce_scatter,
    send_receive,
)
from moecast.sim.collectives.template import FlowTemplate, Legs
from moecast.sim.collectives.timing import CollectiveTime, even_all_to_all, time_collective
from moecast.sim.sites import Sites


class Collective(Protocol):
    """A way to carry copies between the ranks of an EP group."""

    @property
    def name(self) -> str:
        """How outputs call it."""

    def supports(self, mode: Mode, sites: Sites) -> bool:
        """Say whether it carries this mode's copies in this layout."""

    def dispatch(self, sites: Sites, mode: Mode, copy_bytes: float, carrier: Carrier | None = None) -> FlowTemplate:
        """Lay out the flows to the experts, for counts as `Mode.dispatch_counts` gives them.

        `carrier`: what kernels add to the links inside a domain; None: nothing.
        """

    def combine(self, sites: Sites, mode: Mode, copy_bytes: float, carrier: Carrier | None = None) -> FlowTemplate:
        """Lay out the flows back, for counts as `Mode.combine_counts` gives them."""


COLLECTIVES: tuple[Collective, ...] = (FlatAllToAll(), HierarchicalAllToAll())


def collective_for(mode: Mode, sites: Sites) -> Collective:
    """Find the first collective of the list that carries a mode in a layout.

    Raises
    ------
    ValueError
        None does.
    """
    for collective in COLLECTIVES:
        if collective.supports(mode, sites):
            return collective
    raise ValueError(f"no collective carries dispatch mode {mode.name}")


__all__ = [
    "COLLECTIVES",
    "DEFAULT_MODE",
    "KINDS",
    "MODES",
    "OPERATIONS",
    "Carried",
    "Carrier",
    "Collective",
    "CollectiveTime",
    "FlowTemplate",
    "Legs",
    "Mode",
    "all_gather",
    "all_reduce",
    "bus_factor",
    "collective_for",
    "collective_template",
    "even_all_to_all",
    "mode_of",
    "reduce_scatter",
    "send_receive",
    "time_collective",
]
