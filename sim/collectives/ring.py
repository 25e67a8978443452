"""The ring: chunks go round, from each rank to the next, and every rank adds or keeps what passes.

A reduce-scatter and an all-gather make n - 1 rounds of one chunk of bytes / n, an all-reduce both
one after the other. Closed form, even links of rate r and hops of h seconds: rounds · (bytes / (n
r) + h), rounds = n - 1 or 2 (n - 1).

Between domains each member index has a ring of its own with its part of the bytes, so that every
NIC carries one; it runs through every other domain the other way round, so that it leaves a domain
by the rail by which it enters the next (Patarasuk and Yuan 2009 for the ring; NCCL's channels for
the rest).

Axes: E edge, M member, C channel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.edges import Edges, joined
from moecast.sim.collectives.groups import Group
from moecast.sim.collectives.protocols import Protocol

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


class Ring:
    """Every rank sends to its next only; the fewest bytes that any collective without help of switches can send."""

    name = "ring"
    operations = ("all-reduce", "reduce-scatter", "all-gather")

    def supports(self, operation: str, group: Group) -> bool:  # noqa: ARG002
        """Take its operations in any group."""
        return operation in self.operations

    def edges(self, operation: str, group: Group, protocol: Protocol) -> Edges:
        """Lay out the edges of one ring, or of one for each member index between domains."""
        rounds = (group.n - 1) * (2 if operation == "all-reduce" else 1)
        orders = ring_orders(group)
        return joined(
            [ring_edges(group, order_M, rounds / (group.n * len(orders)), rounds, protocol) for order_M in orders]
        )


def ring_edges(group: Group, order_M: Int, part: float, rounds: int, protocol: Protocol) -> Edges:
    """Edges from each to the next in an order, with `part` of the bytes each, whose last chunk makes `rounds` hops."""
    following_M = np.roll(order_M, -1)
    slowest_s = longest_way(group.hops_E(protocol, order_M, following_M), rounds)
    return Edges(
        source_E=order_M,
        destination_E=following_M,
        part_E=np.full(len(order_M), part),
        latency_E=np.full(len(order_M), slowest_s),
    )


def ring_orders(group: Group) -> list[Int]:
    """The order of the ranks in each channel's ring."""
    domains = group.by_domain()
    if len(domains) == 1:
        return [group.ranks_M]
    channels = min(len(ranks) for ranks in domains)
    return [
        np.concatenate([np.roll(ranks, -channel)[:: -1 if place % 2 else 1] for place, ranks in enumerate(domains)])
        for channel in range(channels)
    ]


def longest_way(hops_E: Float, rounds: int) -> float:
    """The most seconds that so many hops one after another take round a ring."""
    laps, rest = divmod(rounds, len(hops_E))
    way_E = np.concatenate([[0.0], np.cumsum(np.tile(hops_E, 2))])
    return float(laps * hops_E.sum() + (way_E[rest : rest + len(hops_E)] - way_E[: len(hops_E)]).max())
