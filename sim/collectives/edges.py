"""The edges of a collective: how much of a group's bytes goes from which rank to which, and how late its last byte is.

Libraries cut the bytes into chunks, and pass one on while the next comes in. So a collective of
many rounds is one flow for each pair of neighbours, with all that passes between them, and the
latency of as many hops as its last chunk makes; where one half of the ranks' links is another
network, flows feed flows. All of them share links as the rung does it, and behind a barrier nobody
leaves before the last has ended: one slow link slows everything.

Axes: E edge, R (edge, parent) pair, D group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.protocols import Protocol
from moecast.sim.collectives.template import FlowTemplate, Legs
from moecast.sim.sites import Sites

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


def _no_pairs() -> Int:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edges:
    """Bytes between the ranks of one group.

    Parameters
    ----------
    source_E, destination_E
        Ranks.
    part_E
        What passes, as a part of the group's bytes (see `moecast.sim.collectives.operations` for
        what those are).
    latency_E
        Seconds from the last byte's departure to its arrival, over all the hops that the last chunk
        makes.
    wire_E
        Bytes on the links for each byte of data, beside those of the protocol.
    child_R, parent_R
        Pairs of edges: the parent feeds the child.
    """

    source_E: Int
    destination_E: Int
    part_E: Float
    latency_E: Float
    wire_E: Float | None = None
    child_R: Int = field(default_factory=_no_pairs)
    parent_R: Int = field(default_factory=_no_pairs)

    @property
    def n(self) -> int:
        """How many edges."""
        return len(self.source_E)


def joined(parts: Sequence[Edges]) -> Edges:
    """Give the edges of several parts as one; those of the parts that feed each other count within their part."""
    first = np.concatenate([[0], np.cumsum([part.n for part in parts])])
    return Edges(
        source_E=np.concatenate([part.source_E for part in parts]),
        destination_E=np.concatenate([part.destination_E for part in parts]),
        part_E=np.concatenate([part.part_E for part in parts]),
        latency_E=np.concatenate([part.latency_E for part in parts]),
        wire_E=np.concatenate([np.ones(part.n) if part.wire_E is None else part.wire_E for part in parts]),
        child_R=np.concatenate([part.child_R + at for part, at in zip(parts, first, strict=False)]),
        parent_R=np.concatenate([part.parent_R + at for part, at in zip(parts, first, strict=False)]),
    )


def template_of(sites: Sites, groups: Sequence[Edges], protocol: Protocol, unit_bytes: float) -> FlowTemplate:
    """Lay out the edges of groups that run at once; counts are units of each group, each of `unit_bytes`."""
    edges = joined(groups)
    group_E = np.repeat(np.arange(len(groups)), [group.n for group in groups])
    destination_E = edges.destination_E.astype(np.int32)
    legs = Legs(
        source_F=edges.source_E.astype(np.int32),
        destination_F=destination_E,
        waiter_F=destination_E,
        awaited_F=group_E,
        count_F=group_E,
        child_R=edges.child_R,
        parent_R=edges.parent_R,
        part_F=edges.part_E,
    )
    near_E = sites.domain_G[edges.source_E] == sites.domain_G[edges.destination_E]
    wire_E = np.where(near_E, protocol.near_wire, protocol.far_wire) * edges.wire_E
    return FlowTemplate.of(sites, legs, unit_bytes, wire_F=wire_E, latency_F=edges.latency_E)
