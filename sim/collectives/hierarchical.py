"""The hierarchical all-to-all: one copy per distinct domain over the sender's rail, then NVLink inside the domain.

A rank's copies for another domain go over its own NIC to its relay there, the rank whose GPU has the same index
(`Sites.relay_SN`), and from it over NVLink to the ranks that need them, chunk by chunk while more comes in: the second
leg starts one chunk after the first and ends at least one chunk after it. The way back mirrors it: partial results meet
at the relay, are added there, and one goes home. A relay can pass nothing on before it has entered the exchange
itself, since its own kernel does the work; DeepEP's normal kernels do the same (deepseek-ai/DeepEP, internode).

Axes: S source rank (on the way back: home), D destination rank (server of a choice), N domain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.modes import Mode
from moecast.sim.collectives.template import PRESENCE, FlowTemplate, Legs
from moecast.sim.sites import Sites

Int = npt.NDArray[np.int64]


class HierarchicalAllToAll:
    """Two legs per (rank, other domain) and one per pair of ranks inside a domain."""

    name = "hierarchical"

    def supports(self, mode: Mode, layout: Sites) -> bool:  # noqa: ARG002
        """Take the modes that know distinct domains."""
        return mode.relayed

    def dispatch(self, layout: Sites, mode: Mode, copy_bytes: float) -> FlowTemplate:  # noqa: ARG002
        """Lay out the way to the experts; a relay that some of the copies are for waits for the leg that it relays."""
        legs = _two_legs(layout)
        far, fans = len(legs.far_source), len(legs.fan_source)
        presence, nobody = np.arange(layout.n_ranks), np.zeros(layout.n_ranks, np.int64)
        out = Legs(
            source_F=_int32(legs.near_source, legs.far_source, legs.fan_relay, presence),
            destination_F=_int32(legs.near_server, legs.far_relay, legs.fan_server, presence),
            waiter_F=_int32(legs.near_server, legs.far_relay, legs.fan_server, nobody - 1),
            awaited_F=np.concatenate(
                [legs.near_count, legs.far_source * layout.n_ranks + legs.far_relay, legs.fan_count, nobody]
            ),
            count_F=np.concatenate(
                [legs.near_count, legs.far_count, legs.fan_count, np.full(layout.n_ranks, PRESENCE)]
            ),
            child_R=np.tile(len(legs.near_source) + far + np.arange(fans), 2),
            parent_R=np.concatenate(
                [len(legs.near_source) + legs.fan_far, len(legs.near_source) + far + fans + legs.fan_relay]
            ),
        )
        return FlowTemplate.of(layout, out, copy_bytes)

    def combine(self, layout: Sites, mode: Mode, copy_bytes: float) -> FlowTemplate:  # noqa: ARG002
        """Lay out the way back: servers to relay, relay to home; only the home waits."""
        legs = _two_legs(layout)
        near, far, fans = len(legs.near_source), len(legs.far_source), len(legs.fan_source)
        presence = np.arange(layout.n_ranks)
        back = Legs(
            source_F=_int32(legs.near_server, legs.far_relay, legs.fan_server, presence),
            destination_F=_int32(legs.near_source, legs.far_source, legs.fan_relay, presence),
            waiter_F=_int32(legs.near_source, legs.far_source, np.full(fans + layout.n_ranks, -1)),
            awaited_F=np.concatenate([legs.near_count, legs.far_count, np.zeros(fans + layout.n_ranks, np.int64)]),
            count_F=np.concatenate(
                [legs.near_count, legs.far_count, legs.fan_count, np.full(layout.n_ranks, PRESENCE)]
            ),
            child_R=near + np.concatenate([legs.fan_far, np.arange(far)]),
            parent_R=near + far + np.concatenate([np.arange(fans), fans + legs.far_relay]),
        )
        return FlowTemplate.of(layout, back, copy_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TwoLegs:
    """Who sends to whom: `near` inside a domain, `far` from a rank to its relay, `fan` from the relay on."""

    near_source: Int
    near_server: Int
    near_count: Int
    far_source: Int
    far_relay: Int
    far_count: Int
    fan_source: Int
    fan_relay: Int
    fan_server: Int
    fan_count: Int
    fan_far: Int  # the far leg that feeds it


def _two_legs(layout: Sites) -> _TwoLegs:
    ranks, domain_G = layout.n_ranks, layout.domain_G
    same_group = layout.group_G[:, None] == layout.group_G[None, :]
    same_domain = domain_G[:, None] == domain_G[None, :]
    near_source, near_server = np.nonzero(same_group & same_domain & ~np.eye(ranks, dtype=bool))
    far_SN = layout.relay_SN >= 0
    far_SN[np.arange(ranks), domain_G] = False
    far_source, far_domain = np.nonzero(far_SN)
    place_SN = np.full(far_SN.shape, -1)
    place_SN[far_source, far_domain] = np.arange(len(far_source))
    fan_source, fan_server = np.nonzero(same_group & ~same_domain)
    fan_relay = layout.relay_SN[fan_source, domain_G[fan_server]]
    passed_on = fan_relay != fan_server  # what is for the relay itself has arrived
    fan_source, fan_server, fan_relay = fan_source[passed_on], fan_server[passed_on], fan_relay[passed_on]
    return _TwoLegs(
        near_source=near_source,
        near_server=near_server,
        near_count=near_source * ranks + near_server,
        far_source=far_source,
        far_relay=layout.relay_SN[far_source, far_domain].astype(np.int64),
        far_count=ranks * ranks + far_source * layout.n_domains + far_domain,
        fan_source=fan_source,
        fan_relay=fan_relay.astype(np.int64),
        fan_server=fan_server,
        fan_count=fan_source * ranks + fan_server,
        fan_far=place_SN[fan_source, domain_G[fan_server]],
    )


def _int32(*parts: npt.ArrayLike) -> npt.NDArray[np.int32]:
    return np.concatenate([np.asarray(part) for part in parts]).astype(np.int32)
