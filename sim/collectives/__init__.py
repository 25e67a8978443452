"""Collectives: from the counts of a layer to the flows that carry its dispatch and combine.

To add one: a file with a class that satisfies `Collective`, and an entry in `COLLECTIVES`.
"""

from __future__ import annotations

from typing import Protocol

from moecast.sim.collectives.all_to_all import AllToAllTime, even_all_to_all, time_all_to_all
from moecast.sim.collectives.flat import FlatAllToAll
from moecast.sim.collectives.hierarchical import HierarchicalAllToAll
from moecast.sim.collectives.modes import DEFAULT_MODE, MODES, Mode, mode_of
from moecast.sim.collectives.template import FlowTemplate, Legs
from moecast.sim.sites import Sites


class Collective(Protocol):
    """A way to carry copies between the ranks of an EP group."""

    @property
    def name(self) -> str:
        """How outputs call it."""

    def supports(self, mode: Mode, layout: Sites) -> bool:
        """Say whether it carries this mode's copies in this layout."""

    def dispatch(self, layout: Sites, mode: Mode, copy_bytes: float) -> FlowTemplate:
        """Lay out the flows to the experts, for counts as `Mode.dispatch_counts` gives them."""

    def combine(self, layout: Sites, mode: Mode, copy_bytes: float) -> FlowTemplate:
        """Lay out the flows back, for counts as `Mode.combine_counts` gives them."""


COLLECTIVES: tuple[Collective, ...] = (FlatAllToAll(), HierarchicalAllToAll())


def collective_for(mode: Mode, layout: Sites) -> Collective:
    """Find the first collective of the list that carries a mode in a layout.

    Raises
    ------
    ValueError
        None does.
    """
    for collective in COLLECTIVES:
        if collective.supports(mode, layout):
            return collective
    raise ValueError(f"no collective carries dispatch mode {mode.name}")


__all__ = [
    "COLLECTIVES",
    "DEFAULT_MODE",
    "MODES",
    "AllToAllTime",
    "Collective",
    "FlowTemplate",
    "Legs",
    "Mode",
    "collective_for",
    "even_all_to_all",
    "mode_of",
    "time_all_to_all",
]
