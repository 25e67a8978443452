"""Which GPU each rank stands on: mappings that have a name, and which of them differ for a layout.

Searches let ranks stand on consecutive GPUs, so that a stage, and an EP group in it, fills domain after domain. Others:

- `rails`: successive ranks on the same GPU index of successive domains, so that every group stands across domains;
- `ep-across`: the same with ranks that share tokens or an expert kept together, so that members of an EP group, and not
  ranks of tensor parallelism, stand across domains, and ranks with the same experts come to stand beside each other;
- `pipeline-inside`: all stages of a data-parallel rank beside each other, before the next (Megatron-LM's
  ``--use-tp-pp-dp-mapping``);
- `pipeline-of-groups`: all stages of an EP group beside each other, before the next group's.

Axes: G rank, also GPU of the job; X group of ranks, R rank of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError

if TYPE_CHECKING:
    from moecast.sim.layout import Layout
    from moecast.topology import Cluster

Int = npt.NDArray[np.integer[Any]]

AXES = ("tp", "cp", "dp", "pp", "etp", "ep", "groups")
"""Groups of ranks that talk to each other; `groups` have the same experts."""
OF_RANKS = "ranks on consecutive GPUs"
"""Whose certificate it is: lower bounds are of these alone."""
DEALT = ("rails", "ep-across")
"""Mappings that deal blocks of ranks to domains in turn."""


@dataclass(frozen=True, slots=True, order=True)
class Mapping:
    """The GPU of each rank, by a name.

    Parameters
    ----------
    name
        One of this file's.
    gpus
        Of each rank, counted from the first that the ranks have; empty: rank after rank.
    """

    name: str = "consecutive"
    gpus: tuple[int, ...] = ()

    def first(self, ranks: int) -> Mapping:
        """Where the first so many ranks stand."""
        return Mapping(self.name, self.gpus[:ranks])


CONSECUTIVE = Mapping()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What a mapping makes of a layout.

    Parameters
    ----------
    name
        Of the mapping, with whose ranks it is where there are two kinds.
    change
        Of its speed, against consecutive ranks: 0.02 is 2 % faster.
    by
        What says so: a rung, or ``layers`` where only layers were timed.
    """

    name: str
    change: float
    by: str

    def to_json(self) -> dict[str, object]:
        """As plain JSON values; the plan has the GPUs."""
        return {"name": self.name, "change": self.change, "by": self.by}


def mapping_json(used: str, tried: Sequence[Tried]) -> dict[str, object]:
    """Which one a layout uses, and what others made of it, as plain JSON values."""
    return {"name": used, "tried": [one.to_json() for one in tried]}


def mapping_told(value: dict[str, Any]) -> str:
    """The same in words, of the JSON values."""
    tried = value["tried"]
    if not tried:
        return f"{value['name']}: no other mapping differs"
    changes = ", ".join(f"{one['name']} {100 * one['change']:+.1f} % (by {one['by']})" for one in tried)
    return f"{value['name']}; against consecutive ranks: {changes}"


def other_mappings(layout: Layout, cluster: Cluster) -> list[Mapping]:
    """Mappings of a layout's ranks to the first GPUs of a cluster that differ from consecutive ranks and each other.

    Two are alike if the ranks of each group stand in the same domains, and groups that leave their domain on the same
    GPUs of them: which rank of a group is which says nothing.

    Raises
    ------
    MoecastError
        The layout has more ranks than the cluster GPUs.
    """
    if layout.ranks > cluster.n_gpus:
        rule = f"{cluster.name} has {cluster.n_gpus} GPUs"
        raise MoecastError(rule, field="ranks", value=layout.ranks)
    domain_G = cluster.domain_of_gpu_G[: layout.ranks]
    if len(np.unique(domain_G)) == 1:
        return []
    index_G, found = cluster.index_in_domain_G, []
    seen = {_standing(layout, np.arange(layout.ranks), domain_G, index_G)}
    for name, gpu_G in _named(layout, domain_G):
        if (standing := _standing(layout, gpu_G, domain_G, index_G)) not in seen:
            seen.add(standing)
            found.append(Mapping(name, tuple(gpu_G.tolist())))
    return found


def block_of(layout: Layout, name: str) -> int:
    """Ranks that a mapping of `DEALT` keeps together."""
    return 1 if name == "rails" else lcm(layout.tp * layout.cp, layout.etp)


def started_by(layout: Layout, cluster: Cluster, name: str) -> str:
    """How a launcher puts ranks on GPUs that way, where engines have no option for it."""
    hosts = np.array_equal(cluster.node_of_gpu_G, cluster.domain_of_gpu_G)
    if name in DEALT and hosts:
        return f"srun --distribution=plane={block_of(layout, name)}, if its processes are the ranks"
    return "srun --distribution=arbitrary by the GPUs of the plan's ranks, if its processes are the ranks"


def near_ranks(mapping: Mapping, cluster: Cluster, ranks: int, stride: int) -> int:
    """The most of a group's ranks that stand in one domain; of the group of rank 0, numbered so far apart."""
    gpus = range(0, ranks * stride, stride) if not mapping.gpus else mapping.gpus[: ranks * stride : stride]
    return int(np.bincount(cluster.domain_of_gpu_G[np.array(gpus)]).max())


def _named(layout: Layout, domain_G: Int) -> Iterator[tuple[str, Int]]:
    """All mappings by name, those that an engine has an option for first, as far as blocks go into domains whole."""
    in_stage_G = layout.member_G * np.int64(layout.etp) + layout.etp_G
    for name, keys in (
        ("pipeline-inside", (layout.tp_G, layout.cp_G, layout.stage_G, layout.dp_G)),
        ("pipeline-of-groups", (in_stage_G, layout.stage_G, layout.group_in_stage_G)),
    ):
        gpu_G = np.empty(layout.ranks, np.int64)
        gpu_G[np.lexsort(keys)] = np.arange(layout.ranks)  # keys: the one that runs fastest first
        yield name, gpu_G

    for name in DEALT:
        block = block_of(layout, name)
        if not (np.bincount(domain_G) % block).any():
            yield name, _dealt(domain_G, block)


def _dealt(domain_G: Int, block: int) -> Int:
    """The GPU of each rank where blocks of ranks go to domains in turn; those that are full are passed over."""
    gpu_G = np.arange(len(domain_G))
    first = np.searchsorted(domain_G, domain_G)  # GPUs of a domain are numbered in one run
    turn_G = (gpu_G - first) // block
    return np.lexsort((gpu_G, domain_G, turn_G))


def _standing(layout: Layout, gpu_G: Int, domain_G: Int, index_G: Int) -> tuple[object, ...]:
    """Where the groups of every axis stand, whichever rank is which."""
    every = (Counter(_places(layout.peers(axis), gpu_G, domain_G, index_G)) for axis in AXES)
    return tuple(frozenset(places.items()) for places in every)


def _places(peer_XR: Int, gpu_G: Int, domain_G: Int, index_G: Int) -> Iterator[tuple[object, ...]]:
    gpu_XR = np.sort(gpu_G[peer_XR], axis=1)
    for gpus in gpu_XR:
        domains = domain_G[gpus].tolist()
        across = len(set(domains)) > 1
        yield tuple(zip(domains, index_G[gpus].tolist(), strict=True)) if across else tuple(domains)
