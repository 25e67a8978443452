"""Lower bounds on what gradients and parameters take at the end of a step, where rings carry them between domains.

A ring runs once through every domain for each rank that the group has there, with that part of the bytes, and enters
a domain at another rank each time (`moecast.sim.collectives.ring`). So, where all domains have equally many of a
group's ranks, each rank hears of exactly one rank of another domain and speaks to exactly one: it leaves no sooner than
that one began and its bytes on the ways into a GPU from outside. Who hears of whom is a permutation, so the mean over
ranks of when they leave is at least the mean of when they enter, and those bytes. Reduce-scatters and all-gathers
between domains are always rings; all-reduces may be trees, and those within a domain are fast: both are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecast.sim.training import overlaps, reductions

if TYPE_CHECKING:
    from moecast.placement.layouts.training.layout import TrainingLayout
    from moecast.placement.layouts.training.ports import Ports
    from moecast.sim.training import Recipe, Shard

ROUNDED = 1 - 1e-6
"""Bytes of an exchange are whole, those of a part need not be."""
RINGS = ("reduce-scatter", "all-gather")


def reduced_s(layout: TrainingLayout, shard: Shard, recipe: Recipe, ports: Ports) -> tuple[float, float]:
    """Least seconds of the mean rank: once a step, and for each microbatch; nothing of what stands beside passes."""
    found = [0.0, 0.0]
    for part in reductions(shard, recipe.precision, zero=layout.zero):
        if not overlaps(part, recipe) and part.operation in RINGS and part.group in ("dense", "expert"):
            ranks, near = layout.group_of(part.group)[0], layout.ranks_in_domain(part.group, ports.domain_gpus)
            if near and ranks > near:
                found[part.per_microbatch] += part.sent_bytes(ranks) / near / ports.far_Bps
    return ROUNDED * found[0], ROUNDED * found[1]
