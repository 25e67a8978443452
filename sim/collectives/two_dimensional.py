"""Tutel's all-to-all in two dimensions: inside the domain first, then between GPUs of one index, in larger messages.

Each rank has a piece of bytes / n for every other. A first exchange inside the domain brings
together at index i what all of its domain have for the ranks of index i; between domains one
message of bytes / d to each of the d - 1 others follows, instead of k smaller ones. Before each
exchange the pieces are copied into the order in which they are sent, and once more at the end
(Tutel, arXiv 2206.03382, section 3.4).

Closed form, d domains of k ranks, a NIC each: (k - 1) / k · bytes / NVLink + (d - 1) / d · bytes /
NIC, latencies of a near and a far hop, and three copies of all bytes, each read and written.

Axes: D group, E edge, N domain, M member.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.collectives.direct import between_all
from moecast.sim.collectives.edges import joined, template_of
from moecast.sim.collectives.groups import Group, groups_of
from moecast.sim.collectives.protocols import PLAIN
from moecast.sim.collectives.template import FlowTemplate
from moecast.sim.sites import Sites


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CollectiveStep:
    """One exchange of a sequence, and what each rank copies in its own memory before it.

    Parameters
    ----------
    template
        None: there is only the copy.
    copied
        Bytes copied before it, as a part of the bytes of a rank; each is read and written.
    """

    template: FlowTemplate | None
    copied: float = 0.0


def two_dimensional_all_to_all(
    sites: Sites, groups_DM: npt.ArrayLike, *, unit_bytes: float = 1.0
) -> tuple[CollectiveStep, ...]:
    """Lay out both exchanges and the copies around them.

    Counts are units of each group [D], own share included.

    Raises
    ------
    MoecastError
        A group does not have as many ranks in each of at least two domains.
    ValueError, TypeError
        Not ranks of the sites, fewer than two in a group, or one rank twice.
    """
    groups = list(groups_of(sites, groups_DM))
    for group in groups:
        if group.in_one_domain or not group.is_even:
            rule = "takes groups with as many ranks in each of several domains"
            raise MoecastError(rule, field="kind", value="2dh")
    rails = [np.array(group.by_domain()) for group in groups]

    def exchange(sets: list[list[npt.NDArray[np.int64]]]) -> CollectiveStep:
        return CollectiveStep(template=_among(sites, sets, unit_bytes), copied=1.0)

    steps = [exchange([list(rails_NM.T) for rails_NM in rails])]
    if rails[0].shape[1] > 1:
        steps.insert(0, exchange([list(rails_NM) for rails_NM in rails]))
    return (*steps, CollectiveStep(template=None, copied=1.0))


def _among(sites: Sites, sets: list[list[npt.NDArray[np.int64]]], unit_bytes: float) -> FlowTemplate:
    """An all-to-all within each of the sets of ranks of each group."""
    edges = []
    for ranks_of_set in sets:
        parts = [Group(sites=sites, ranks_M=ranks_M) for ranks_M in ranks_of_set]
        edges.append(joined([between_all(part, part=1 / part.n, rounds=1, protocol=PLAIN) for part in parts]))
    return template_of(sites, edges, PLAIN, unit_bytes)
