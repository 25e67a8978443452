"""Flows that exchanges of a template share, and what follows from them whatever their sizes.

Axes: F flow, X (flow, link) pair, R rank, J link of the program, I link that some flow crosses, S flow by sender.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from moecast.arrays import HUGE
from moecast.sim.busy import add_link_units
from moecast.sim.network.crowds import Crowds, Fed, by_sender, find_crowds, tails
from moecast.sim.network.exchange_bounds import by_start, flow_bounds
from moecast.sim.network.flows import PROBLEMS, check_flows, parents_first
from moecast.sim.network.links import kept_pairs, paces
from moecast.sim.network.served import Begun, Moving
from moecast.sim.network.slots import Links, Slots, find_slots, renamed
from moecast.sim.program import Exchange, Float, Flows, Int, Int32, Sizes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Structure:
    """Who waits for which flows, and which of their links serve which: the same for all templates of one form.

    Parameters
    ----------
    has_tails
        Whether somebody may still have to wait after a flow, or nobody waits for one.
    first_S1, sent_S
        Flows by sender, as a CSR.
    """

    n_groups: int
    barrier: bool
    has_tails: bool
    fed: Fed
    crowds: Crowds
    slots: Slots
    first_S1: Int
    sent_S: Int

    @classmethod
    def of(cls, flows: Flows, links: Links, exchange: Exchange) -> Structure:
        """Find that of an exchange's flows."""
        group_R, barrier = exchange.group_R, exchange.barrier
        n_groups = int(group_R.max(initial=-1)) + 1
        parents_F1, parent_R = flows.parent_offsets_F1, flows.parent_R
        fed = Fed(parents_F1, parent_R, parents_first(parents_F1, parent_R))
        crowds = find_crowds(flows.source_rank_F, flows.waiter_F, fed, group_R, n_groups, barrier)
        has_tails = len(parent_R) > 0 or bool((flows.waiter_F < 0).any())
        first_S1, sent_S = by_sender(flows.source_rank_F, exchange.n_ranks)
        return cls(
            n_groups=n_groups,
            barrier=barrier,
            has_tails=has_tails,
            fed=fed,
            crowds=crowds,
            slots=find_slots(crowds, links, group_R, n_groups, has_tails),
            first_S1=first_S1,
            sent_S=sent_S,
        )


class Structures:
    """The structures of a program's exchanges, each found once."""

    def __init__(self) -> None:
        self._known: dict[bytes, Structure] = {}

    def of(self, flows: Flows, links: Links, exchange: Exchange) -> Structure:
        """That of an exchange's flows, whose links are counted in the order in which they come."""
        key = hashlib.sha256(f"{exchange.barrier} {exchange.n_ranks}".encode())
        for array in (
            exchange.group_R,
            flows.source_rank_F,
            flows.waiter_F,
            links.offsets_F1,
            links.link_X,
            flows.parent_offsets_F1,
            flows.parent_R,
        ):
            key.update(f"{array.dtype} {len(array)}".encode())
            key.update(np.ascontiguousarray(array).tobytes())
        if key.digest() not in self._known:
            self._known[key.digest()] = Structure.of(flows, links, exchange)
        return self._known[key.digest()]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SharedFlows:
    """All possible flows of a template, checked, with the links that count, and who waits for which.

    Parameters
    ----------
    flows, group_R
        What they are known by: kept so that nothing else gets their places in memory.
    pace_F, pace_X
        Seconds a byte of a flow that is alone, and on each of its links.
    link_I
        The links that they cross.
    bytes_F
        Of all exchanges whose sizes were taken.
    """

    flows: Flows
    group_R: Int32
    structure: Structure
    pace_F: Float
    pace_X: Float
    link_I: Int32
    bytes_F: Float

    @classmethod
    def of(
        cls, flows: Flows, exchange: Exchange, bottleneck_J: Int | None, capacity_J: Float, structures: Structures
    ) -> SharedFlows:
        """Look at the flows of an exchange.

        Raises
        ------
        ValueError, TypeError
            Names the rule that they break.
        """
        check_flows(flows, n_links=len(capacity_J), n_ranks=exchange.n_ranks)
        offsets_F1, link_X, share_X = kept_pairs(flows.paths, bottleneck_J)
        pace_F, pace_X = paces(offsets_F1, link_X, share_X, capacity_J), share_X / capacity_J[link_X]
        link_X, link_I = renamed(link_X, len(capacity_J))
        return cls(
            flows=flows,
            group_R=exchange.group_R,
            structure=structures.of(flows, Links(offsets_F1, link_X, len(link_I)), exchange),
            pace_F=pace_F,
            pace_X=pace_X,
            link_I=link_I,
            bytes_F=np.zeros(flows.n),
        )

    def take(self, sizes: Sizes) -> None:
        """Take note of what an exchange sends.

        Raises
        ------
        ValueError
            It cannot be counted.
        """
        if not sizes.bytes_F.max(initial=0.0) <= HUGE:
            raise ValueError(f"flows: {PROBLEMS[1]}")
        np.add(self.bytes_F, np.maximum(sizes.bytes_F, 0.0), out=self.bytes_F)

    def add_units(self, units_J: Float) -> None:
        """Add what all exchanges put on each link [J], in place."""
        add_link_units(self.flows, self.bytes_F, units_J)

    def moving(self, sizes: Sizes, begun: Begun) -> Moving:
        """When the flows of an exchange start and end at the earliest, and who waits how long after them."""
        flows, of = self.flows, self.structure
        source_F, latency_F, bytes_F = flows.source_rank_F, flows.latency_F, sizes.bytes_F
        delay_F, tail_F = sizes.feed_delay_F, sizes.feed_tail_F
        start_F, end_F, alone_F = flow_bounds(
            source_F, bytes_F, self.pace_F, latency_F, of.fed, delay_F, tail_F, begun.begin_R
        )
        if len(of.fed.parent_R):
            order_F = np.argsort(start_F, kind="stable")  # as they stand where they start together: quick to walk
            order_F = order_F[bytes_F[order_F] >= 0]
        else:
            order_F = by_start(begun.begin_R, of.first_S1, of.sent_S, bytes_F)
        tail_M = span_M = np.empty(0)
        if of.has_tails:
            tail_M, span_M = tails(
                of.crowds, of.fed, of.n_groups, of.barrier, sizes.waiter_F, bytes_F, alone_F, delay_F, tail_F
            )
        return Moving(
            order_F,
            source_F,
            sizes.waiter_F,
            bytes_F,
            self.pace_X,
            self.link_I,
            latency_F,
            start_F,
            end_F,
            alone_F,
            tail_M,
            span_M,
        )
