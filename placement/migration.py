"""What it takes to change from one plan to another while serving: which experts move, how many bytes, how long.

A rank that holds an expert somewhere in a layer keeps it, in whatever slot; an expert that is new
to a rank comes from a rank of its EP group that holds it before: of those in its domain if there
are any, the one that sends least so far (the lowest rank among equals). Layers move one after
another, as engines do for want of room for two tables of experts; in each, all ranks send at once
over the cluster's own links, and nobody goes on before the last byte has come.

Not in it: what the engine itself takes (planning on the host, copies within a GPU, graphs captured
anew).

Axes: D EP group, L MoE layer, G rank of the plan, P slot, M move, C pair of ranks between which
something moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.collectives.template import FlowTemplate, Legs
from moecast.sim.collectives.timing import program_of
from moecast.sim.network import Rung, find_rung
from moecast.sim.program import Exchange
from moecast.sim.sites import Sites
from moecast.sim.slots import EMPTY

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan
    from moecast.topology import Cluster

Int = npt.NDArray[np.int64]

SAME = ("experts", "layer_ids", "gpu_of_rank", "ep", "groups", "etp", "tp", "cp", "pp")
"""What two plans must share for weights to move between them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Migration:
    """The experts that move, and how long they take if nothing else uses the links.

    Parameters
    ----------
    layer_M, expert_M, source_M, destination_M
        Each move: its layer (among the MoE layers), the expert, and the ranks.
    bytes_GG
        Bytes from each rank to each other.
    seconds
        All layers, one after another.
    """

    layer_M: Int
    expert_M: Int
    source_M: Int
    destination_M: Int
    bytes_GG: Int
    seconds: float

    @property
    def bytes(self) -> int:
        """Of all moves."""
        return int(self.bytes_GG.sum())

    @property
    def moves(self) -> int:
        """M."""
        return len(self.layer_M)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in sum."""
        return {"moves": self.moves, "bytes": self.bytes, "seconds": self.seconds}


def migration(
    cluster: Cluster, model: ModelShape, before: Plan, after: Plan, *, network: str | Rung = "bound", seed: int = 0
) -> Migration:
    """Find what moves between two plans of one layout, and time it over the cluster's links.

    Parameters
    ----------
    network
        The rung that times it: ``bound`` (the busiest link of each layer) or ``fluid``.
    seed
        Of the hash that picks paths.

    Raises
    ------
    MoecastError
        The plans are of different layouts, or an EP group holds an expert after that it did not
        hold before.
    """
    for name in SAME:
        if getattr(before, name) != getattr(after, name):
            rule = f"weights move between plans of one {name}"
            raise MoecastError(rule, field=name, value=getattr(after, name))
    sites = Sites.of(cluster, before, seed=seed)
    moves = [
        move
        for layer in range(before.layers)
        for members_G in before.layout.peers("ep")
        for move in _moves(layer, members_G, sites, before, after)
    ]
    layer_M, expert_M, source_M, destination_M = np.array(moves, np.int64).reshape(-1, 4).T
    expert_bytes = -(-model.expert_bytes // before.etp)
    bytes_GG = np.zeros((before.ranks, before.ranks), np.int64)
    np.add.at(bytes_GG, (source_M, destination_M), expert_bytes)
    return Migration(
        layer_M=layer_M,
        expert_M=expert_M,
        source_M=source_M,
        destination_M=destination_M,
        bytes_GG=bytes_GG,
        seconds=_seconds(sites, layer_M, source_M * before.ranks + destination_M, expert_bytes, find_rung(network)),
    )


def _moves(
    layer: int, members_G: npt.NDArray[np.int32], sites: Sites, before: Plan, after: Plan
) -> list[tuple[int, int, int, int]]:
    """List the moves of one layer and EP group: (layer, expert, source, destination)."""
    group = int(sites.group_G[members_G[0]])
    first_GP, then_GP = before.slots_DLGP[group, layer], after.slots_DLGP[group, layer]
    holders: dict[int, list[int]] = {}
    for member, held_P in enumerate(first_GP):
        for expert in set(held_P.tolist()) - {EMPTY}:
            holders.setdefault(expert, []).append(int(members_G[member]))
    sent: dict[int, int] = {}
    moves = []
    for member, held_P in enumerate(then_GP):
        destination = int(members_G[member])
        for expert in sorted(set(held_P.tolist()) - {EMPTY} - set(first_GP[member].tolist())):
            if expert not in holders:
                raise MoecastError(
                    "no rank of the EP group holds it before", field=f"expert in layer {layer}", value=expert
                )
            source = _source(holders[expert], destination, sites, sent)
            sent[source] = sent.get(source, 0) + 1
            moves.append((layer, expert, source, destination))
    return moves


def _source(holders: list[int], destination: int, sites: Sites, sent: dict[int, int]) -> int:
    """Who sends: from the own domain rather than from others, then who has sent least, then the lowest rank."""
    domain = sites.domain_G[destination]
    return min(holders, key=lambda rank: (sites.domain_G[rank] != domain, sent.get(rank, 0), rank))


def _seconds(sites: Sites, layer_M: Int, pair_M: Int, expert_bytes: int, rung: Rung) -> float:
    """Time one exchange after another, a layer each."""
    if not len(layer_M):
        return 0.0
    pair_C, of_pair_M = np.unique(pair_M, return_inverse=True)
    source_C, destination_C = (ends.astype(np.int32) for ends in divmod(pair_C, sites.n_ranks))
    template = FlowTemplate.of(sites, Legs.direct(source_C, destination_C, np.arange(len(pair_C))), 1.0)
    hardware = sites.cluster.hardware
    exchanges = [
        Exchange(
            kind="other",
            layer=int(layer),
            flows=template.counted(
                np.bincount(of_pair_M[layer_M == layer], minlength=len(pair_C)).astype(np.int64) * expert_bytes
            ),
            setup_s=hardware.collective_launch_s + hardware.barrier_s,
            barrier=True,
            group_R=np.zeros(sites.n_ranks, np.int32),
        )
        for layer in np.unique(layer_M)
    ]
    return float(rung.run(program_of(sites, exchanges)).step_time_s)
