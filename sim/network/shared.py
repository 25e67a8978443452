"""Flows that exchanges of a template share, and what follows from them whatever their sizes.

Axes: F flow, X (flow, link) pair, R rank, J link.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moecast.arrays import HUGE
from moecast.sim.busy import add_units
from moecast.sim.network.crowds import Crowds, Fed, by_sender, find_crowds, tails
from moecast.sim.network.exchange_bounds import Begun, Moving, by_start, flow_bounds
from moecast.sim.network.flows import PROBLEMS, check_flows, parents_first
from moecast.sim.network.links import kept_pairs
from moecast.sim.network.slots import Links, Slots, find_slots, slowest
from moecast.sim.program import Exchange, Float, Flows, Int, Int32, Sizes


@dataclass(slots=True, kw_only=True, eq=False)
class SharedFlows:
    """All possible flows of a template, checked, with the links that count, and who waits for which.

    Parameters
    ----------
    flows, group_R
        What they are known by: kept so that nothing else gets their places in memory.
    pace_F
        Seconds a byte of a flow that is alone.
    has_tails
        Whether somebody may still have to wait after a flow, or nobody waits for one.
    first_S1, sent_S
        Flows by sender, as a CSR.
    bytes_F
        Of all exchanges whose sizes were taken.
    """

    flows: Flows
    group_R: Int32
    n_groups: int
    barrier: bool
    pace_F: Float
    fed: Fed
    crowds: Crowds
    slots: Slots
    has_tails: bool
    first_S1: Int
    sent_S: Int
    bytes_F: Float

    @classmethod
    def of(cls, flows: Flows, exchange: Exchange, bottleneck_J: Int | None, capacity_J: Float) -> SharedFlows:
        """Look at the flows of an exchange.

        Raises
        ------
        ValueError, TypeError
            Names the rule that they break.
        """
        check_flows(flows, n_links=len(capacity_J), n_ranks=exchange.n_ranks)
        offsets_F1, link_X, share_X = kept_pairs(flows.paths, bottleneck_J)
        links = Links(offsets_F1, link_X, share_X / capacity_J[link_X])
        parents_F1, parent_R = flows.parent_offsets_F1, flows.parent_R
        fed = Fed(parents_F1, parent_R, parents_first(parents_F1, parent_R))
        group_R, barrier = exchange.group_R, exchange.barrier
        n_groups = int(group_R.max(initial=-1)) + 1
        crowds = find_crowds(flows.source_rank_F, flows.waiter_F, fed, group_R, n_groups, barrier)
        has_tails = len(parent_R) > 0 or bool((flows.waiter_F < 0).any())
        first_S1, sent_S = by_sender(flows.source_rank_F, exchange.n_ranks)
        return cls(
            flows=flows,
            group_R=group_R,
            n_groups=n_groups,
            barrier=barrier,
            pace_F=slowest(links),
            fed=fed,
            crowds=crowds,
            slots=find_slots(crowds, links, group_R, n_groups, len(capacity_J), has_tails),
            has_tails=has_tails,
            first_S1=first_S1,
            sent_S=sent_S,
            bytes_F=np.zeros(flows.n),
        )

    @property
    def numbers(self) -> int:
        """How many numbers are kept, about."""
        slots = self.slots
        visits = len(slots.visits.slot_V) + len(slots.group_visits.slot_V) + 2 * len(slots.lone.link_L)
        return 2 * visits + 2 * len(self.crowds.flow_M) + len(self.flows.link_X) + 8 * self.flows.n

    def take(self, sizes: Sizes) -> None:
        """Take note of what an exchange sends.

        Raises
        ------
        ValueError
            It cannot be counted.
        """
        if not sizes.bytes_F.max(initial=0.0) <= HUGE:
            raise ValueError(f"flows: {PROBLEMS[1]}")
        self.bytes_F += np.maximum(sizes.bytes_F, 0.0)

    def add_units(self, units_J: Float) -> None:
        """Add what all exchanges put on each link [J], in place."""
        add_units(self.flows, self.bytes_F, units_J)

    def moving(self, sizes: Sizes, begun: Begun) -> Moving:
        """When the flows of an exchange start and end at the earliest, and who waits how long after them."""
        flows, fed = self.flows, self.fed
        source_F, latency_F, is_fed = flows.source_rank_F, flows.latency_F, len(fed.parent_R) > 0
        start_F, end_F, alone_F = flow_bounds(
            source_F, sizes.bytes_F, self.pace_F, latency_F, fed, sizes.feed_delay_F, sizes.feed_tail_F, begun.begin_R
        )
        if is_fed:
            order_F = np.argsort(start_F)
            order_F = order_F[sizes.bytes_F[order_F] >= 0]
        else:
            order_F = by_start(begun.begin_R, self.first_S1, self.sent_S, sizes.bytes_F)
        tail_M = span_M = np.empty(0)
        if self.has_tails:
            tail_M, span_M = tails(
                self.crowds,
                fed,
                self.n_groups,
                self.barrier,
                sizes.waiter_F,
                sizes.bytes_F,
                alone_F,
                sizes.feed_delay_F,
                sizes.feed_tail_F,
            )
        return Moving(
            order_F, source_F, sizes.waiter_F, sizes.bytes_F, latency_F, start_F, end_F, alone_F, tail_M, span_M
        )
