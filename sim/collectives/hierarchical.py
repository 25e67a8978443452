"""The hierarchical all-to-all: one copy per distinct domain over the sender's rail, then NVLink inside the domain.

A rank's copies for another domain go over its own NIC to its relay there, the rank whose GPU has
the same index (`Sites.relay_SA`), and from it over NVLink to the ranks that need them, chunk by
chunk while more comes in: the second leg starts one chunk after the first and ends at least one
chunk after it. The way back mirrors it: partial results meet at the relay, are added there, and one
goes home. A relay can pass nothing on before it has entered the exchange itself, since its own
kernel does the work; DeepEP's normal kernels do the same (deepseek-ai/DeepEP, internode).

Axes: S source rank (on the way back: home), M member of its EP group (server of a choice), A domain
of the group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.carriers import Carrier, lay_out
from moecast.sim.collectives.modes import Mode
from moecast.sim.collectives.template import PRESENCE, FlowTemplate, Legs
from moecast.sim.sites import Sites

Int = npt.NDArray[np.int64]


class HierarchicalAllToAll:
    """Two legs per (rank, other domain) and one per pair of ranks inside a domain."""

    name = "hierarchical"

    def supports(self, mode: Mode, sites: Sites) -> bool:  # noqa: ARG002
        """Take the modes that know distinct domains."""
        return mode.relayed

    def dispatch(
        self,
        sites: Sites,
        mode: Mode,  # noqa: ARG002
        copy_bytes: float,
        carrier: Carrier | None = None,
    ) -> FlowTemplate:
        """Lay out the way to the experts; a relay that some of the copies are for waits for the leg that it relays."""
        legs = _two_legs(sites)
        far, fans = len(legs.far_source), len(legs.fan_source)
        presence, nobody = np.arange(sites.n_ranks), np.zeros(sites.n_ranks, np.int64)
        out = Legs(
            source_F=_int32(legs.near_source, legs.far_source, legs.fan_relay, presence),
            destination_F=_int32(legs.near_server, legs.far_relay, legs.fan_server, presence),
            waiter_F=_int32(legs.near_server, legs.far_relay, legs.fan_server, nobody - 1),
            awaited_F=np.concatenate([legs.near_count, legs.far_awaited, legs.fan_count, nobody]),
            count_F=np.concatenate([legs.near_count, legs.far_count, legs.fan_count, np.full(sites.n_ranks, PRESENCE)]),
            child_R=np.tile(len(legs.near_source) + far + np.arange(fans), 2),
            parent_R=np.concatenate(
                [len(legs.near_source) + legs.fan_far, len(legs.near_source) + far + fans + legs.fan_relay]
            ),
        )
        return lay_out(sites, out, copy_bytes, carrier)

    def combine(
        self,
        sites: Sites,
        mode: Mode,  # noqa: ARG002
        copy_bytes: float,
        carrier: Carrier | None = None,
    ) -> FlowTemplate:
        """Lay out the way back: servers to relay, relay to home; only the home waits."""
        legs = _two_legs(sites)
        near, far, fans = len(legs.near_source), len(legs.far_source), len(legs.fan_source)
        presence = np.arange(sites.n_ranks)
        back = Legs(
            source_F=_int32(legs.near_server, legs.far_relay, legs.fan_server, presence),
            destination_F=_int32(legs.near_source, legs.far_source, legs.fan_relay, presence),
            waiter_F=_int32(legs.near_source, legs.far_source, np.full(fans + sites.n_ranks, -1)),
            awaited_F=np.concatenate([legs.near_count, legs.far_count, np.zeros(fans + sites.n_ranks, np.int64)]),
            count_F=np.concatenate([legs.near_count, legs.far_count, legs.fan_count, np.full(sites.n_ranks, PRESENCE)]),
            child_R=near + np.concatenate([legs.fan_far, np.arange(far)]),
            parent_R=near + far + np.concatenate([np.arange(fans), fans + legs.far_relay]),
        )
        return lay_out(sites, back, copy_bytes, carrier)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TwoLegs:
    """Who sends to whom: `near` inside a domain, `far` from a rank to its relay, `fan` from the relay on."""

    near_source: Int
    near_server: Int
    near_count: Int
    far_source: Int
    far_relay: Int
    far_count: Int
    far_awaited: Int  # copies for the relay itself
    fan_source: Int
    fan_relay: Int
    fan_server: Int
    fan_count: Int
    fan_far: Int  # the far leg that feeds it


def _two_legs(sites: Sites) -> _TwoLegs:
    ranks, members = sites.n_ranks, sites.n_members
    source, server = np.arange(ranks).repeat(members), sites.peer_SM.ravel().astype(np.int64)
    place, own = sites.place_SM.ravel(), sites.own_place_G
    near_count = np.flatnonzero((place == own[source]) & (source != server))
    far_SA = sites.relay_SA >= 0
    far_SA[np.arange(ranks), own] = False
    far_source, far_place = np.nonzero(far_SA)
    far_relay = sites.relay_SA[far_source, far_place].astype(np.int64)
    leg_SA = np.full(far_SA.shape, -1)
    leg_SA[far_source, far_place] = np.arange(len(far_source))
    relay = sites.relay_SA[source, place]
    # what is for the relay has arrived
    fan_count = np.flatnonzero((place != own[source]) & (relay != server))
    return _TwoLegs(
        near_source=source[near_count],
        near_server=server[near_count],
        near_count=near_count,
        far_source=far_source,
        far_relay=far_relay,
        far_count=ranks * members + far_source * sites.n_places + far_place,
        far_awaited=far_source * members + sites.member_G[far_relay],
        fan_source=source[fan_count],
        fan_relay=relay[fan_count].astype(np.int64),
        fan_server=server[fan_count],
        fan_count=fan_count,
        fan_far=leg_SA[source[fan_count], place[fan_count]],
    )


def _int32(*parts: npt.ArrayLike) -> npt.NDArray[np.int32]:
    return np.concatenate([np.asarray(part) for part in parts]).astype(np.int32)
