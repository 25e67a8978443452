"""Reduction in the switch: NVSwitch adds up what all GPUs of a domain send, and sends one copy to each (NVLS, SHARP).

In a reduce-scatter each rank's bytes go up once, in an all-gather they come down once. In an
all-reduce a rank also pulls its own share down added up, and sends it up again to all, so that (1 +
1/n) of the bytes pass its link each way (the multimem.ld_reduce and multimem.st of PTX). Switches
reach a part of the links' rate: `Hardware.in_switch_efficiency`.

Closed form, n ranks, links of rate r, efficiency e and a hop of h: (1 + 1/n) bytes / (e r) + h for
an all-reduce, bytes / (e r) + h otherwise. It says nothing of the other direction, which has no
more to carry.

Axes: E edge, M member.
"""

from __future__ import annotations

import numpy as np

from moecast.sim.collectives.edges import Edges
from moecast.sim.collectives.groups import Group
from moecast.sim.collectives.protocols import Protocol


class InSwitch:
    """Each rank's bytes cross its link to the switch once, whatever the number of ranks."""

    name = "in-switch"
    operations = ("all-reduce", "reduce-scatter", "all-gather")

    def supports(self, operation: str, group: Group) -> bool:
        """Take more than two ranks of one domain, where its switches can add."""
        has_it = group.sites.cluster.hardware.in_switch_efficiency > 0
        return operation in self.operations and has_it and group.in_one_domain and group.n > 2

    def edges(self, operation: str, group: Group, protocol: Protocol) -> Edges:
        """Lay out an edge from each rank to the next: it takes the links to and from the switch as all bytes do."""
        following_M = np.roll(group.ranks_M, -1)
        part = 1 + 1 / group.n if operation == "all-reduce" else 1.0
        slowest_s = float(group.hops_E(protocol, group.ranks_M, following_M).max())
        return Edges(
            source_E=group.ranks_M,
            destination_E=following_M,
            part_E=np.full(group.n, part),
            latency_E=np.full(group.n, slowest_s),
            wire_E=np.full(group.n, 1 / group.sites.cluster.hardware.in_switch_efficiency),
        )
