"""The exchanges around tensor parallelism: consecutive ranks share tokens and split heads, or the width of experts.

With sequence parallelism each rank keeps the hidden vectors of its part of the tokens (Korthikanti
et al. 2022, arXiv 2205.05198). Before attention it gathers those of the others; after it, each
sends the others its partial sums of their tokens (a reduce-scatter). So do ranks that share experts
by width, with the copies that came to each. Both are direct, as NVLink does them fastest.

Without it each rank keeps the vectors of all tokens that it shares: partial sums are all-reduced,
as NCCL would, and only what experts send home to one rank is gathered.

Axes: S source rank, D destination rank, P place among the ranks that share tokens.
"""

from __future__ import annotations

import numpy as np

from moecast.sim.collectives.choice import NCCL, Choice, candidates, engine_candidates
from moecast.sim.collectives.groups import groups_of
from moecast.sim.collectives.operations import find_kind
from moecast.sim.collectives.template import FlowTemplate, Legs
from moecast.sim.layout import Layout
from moecast.sim.sites import Sites


def hidden_template(sites: Sites, layout: Layout, row_bytes: float, *, axis: str = "tp") -> FlowTemplate:
    """Lay out the flows between ranks that share rows along an axis; counts are rows by (source, place: [S, P])."""
    peers_SP = layout.peers_of_ranks(axis)
    source, destination = np.arange(layout.ranks).repeat(peers_SP.shape[1]), peers_SP.ravel()
    count = np.flatnonzero(source != destination)
    legs = Legs.direct(source[count], destination[count], count)
    return FlowTemplate.of(sites, legs, row_bytes)


def sum_choices(sites: Sites, layout: Layout, row_bytes: float, *, fused: bool = False) -> tuple[Choice, ...]:
    """Lay out what may add up partial sums at all ranks that share tokens.

    Counts are rows by group of them.

    None where nobody shares tokens. `fused`: by a kernel in symmetric memory where the switch adds,
    else as NCCL does, or by the engine's own kernels where costs of those are asked for.
    """
    if layout.tp == 1:
        return ()
    groups_DM, in_switch = layout.peers("tp"), find_kind("all-reduce", "in-switch")
    fused = fused and all(in_switch.supports("all-reduce", group) for group in groups_of(sites, groups_DM))
    kind = in_switch.name if fused else NCCL
    own = [] if fused else engine_candidates(sites, groups_DM, unit_bytes=row_bytes)
    return (*own, *candidates(sites, groups_DM, operation="all-reduce", kind=kind, unit_bytes=row_bytes))
