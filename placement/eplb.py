"""DeepSeek's Expert Parallelism Load Balancer, from its published algorithm (github.com/deepseek-ai/EPLB).

Groups of experts are packed onto nodes, hot experts get replicas inside their node, and the
replicas are packed onto the node's GPUs; where the groups do not divide evenly, the whole cluster
is taken as one node with one group. An even split of an expert's load over its replicas is assumed,
and nothing keeps two replicas of one expert off one GPU.

A node is a host here, also where one NVLink domain has several: engines hand the number of their
hosts to EPLB (SGLang's `nnodes`), so this is what a user of theirs gets on a GB200 NVL72 too.

Axes: L layer, E expert, I item to pack, B bin, G rank, P slot of a rank, S slot of all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.arrays import index, numbers
from moecast.errors import MoecastError
from moecast.placement.solver import Solved
from moecast.sim.slots import MOST_GROUP_SLOTS

if TYPE_CHECKING:
    from moecast.placement.limit import Budget
    from moecast.placement.objective import Objective
    from moecast.placement.problem import PlacementProblem
    from moecast.placement.solver import SlotProblem

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


def rebalance(load_LE: npt.ArrayLike, *, slots: int, ranks: int, expert_groups: int = 1, nodes: int = 1) -> Int:
    """Place experts by load alone.

    Parameters
    ----------
    load_LE
        Load of each expert at each layer.
    slots, ranks
        Slots of all ranks together, a multiple of `ranks`.
    expert_groups
        Groups of E / groups successive experts that a token's choices are limited to; 1 where the
        router has none.
    nodes
        Nodes that the ranks stand on; groups stay on a node where `nodes` divides them.

    Returns
    -------
    int64 [L, ranks, slots / ranks], the expert in each slot.

    Raises
    ------
    ValueError, TypeError
        Sizes that do not divide, fewer slots than experts, or a load that is negative or no number.
    """
    load = numbers("load_LE", load_LE, shape=(None, None))
    experts = load.shape[1]
    sizes = {"slots": slots, "ranks": ranks, "expert_groups": expert_groups, "nodes": nodes}
    for name, size in sizes.items():
        index(name, size, least=1, most=MOST_GROUP_SLOTS)
    if slots % ranks or slots < experts:
        raise ValueError(f"slots = {slots}: a multiple of {ranks} ranks, and at least {experts} experts")
    if ranks % nodes or experts % expert_groups:
        raise ValueError(
            f"{nodes} nodes must divide {ranks} ranks, {expert_groups} groups must divide {experts} experts"
        )
    if expert_groups % nodes:
        nodes = expert_groups = 1
    return np.stack([_layer(load_E, slots, ranks, expert_groups, nodes) for load_E in load])


def _layer(load_E: Float, slots: int, ranks: int, groups: int, nodes: int) -> Int:
    per_group = len(load_E) // groups
    groups_on_node = pack(load_E.reshape(groups, per_group).sum(1), nodes)
    placed = []
    for group_I in groups_on_node:
        expert_I = (group_I[:, None] * per_group + np.arange(per_group)).ravel()
        which_S, share_S = replicate(load_E[expert_I], slots // nodes)
        placed.append(expert_I[which_S[pack(share_S, ranks // nodes)]])
    return np.concatenate(placed)


def replicate(load_E: Float, slots: int) -> tuple[Int, Float]:
    """Give every expert a slot, and each slot left to the first expert with the most load per replica.

    Returns
    -------
    The expert of each slot (int64 [slots]), and the load per replica that it will carry (float64
    [slots]).
    """
    expert_S = np.arange(slots)
    replicas_E = np.ones(len(load_E), np.int64)
    for slot in range(len(load_E), slots):
        expert_S[slot] = np.argmax(load_E / replicas_E)
        replicas_E[expert_S[slot]] += 1
    return expert_S, (load_E / replicas_E)[expert_S]


def pack(load_I: Float, bins: int) -> Int:
    """Deal items to bins of equal size, the heaviest first, each to the lightest with room.

    Returns
    -------
    int64 [bins, I / bins], the items of each bin.
    """
    size = len(load_I) // bins
    if size == 1:
        return np.arange(bins)[:, None]
    packed_BI = np.empty((bins, size), np.int64)
    filled_B, load_B = np.zeros(bins, np.int64), np.zeros(bins)
    for item in np.argsort(-load_I, kind="stable"):
        lightest = int(np.argmin(np.where(filled_B < size, load_B, np.inf)))
        packed_BI[lightest, filled_B[lightest]] = item
        filled_B[lightest] += 1
        load_B[lightest] += load_I[item]
    return packed_BI


@dataclass(frozen=True, slots=True, kw_only=True)
class Eplb:
    """DeepSeek's algorithm on the loads of the planning steps, or of a load table.

    Parameters
    ----------
    expert_groups
        Groups of experts that the router limits a token to (DeepSeek-V3: 8); None: the problem's
        own.

    Raises
    ------
    MoecastError
        Groups that are not a whole number of at least 1.
    """

    name: str = "eplb"
    expert_groups: int | None = None

    def __post_init__(self) -> None:
        groups = self.expert_groups
        if groups is not None and (isinstance(groups, bool) or not isinstance(groups, int) or groups < 1):
            raise MoecastError("a whole number of at least 1", field="expert_groups", value=groups)

    def supports(self, problem: SlotProblem) -> str | None:
        """Take ranks with equally many slots."""
        if problem.slots_G.min() != problem.slots_G.max():
            return "needs equally many slots on every rank"
        groups = self._groups(problem)
        if problem.wanted.experts % groups:
            return f"its {groups} groups do not divide {problem.wanted.experts} experts"
        return None

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:  # noqa: ARG002
        """Pack by load alone."""
        return self.spread(problem)

    def spread(self, problem: SlotProblem) -> Solved:
        """Pack by load alone."""
        groups, hosts = self._groups(problem), int(problem.node_G.max()) + 1
        even = stand_evenly(problem.node_G)
        nodes = hosts if even and groups % hosts == 0 else 1
        slots_LGP = rebalance(
            problem.load_LE,
            slots=int(problem.slots_G.sum()),
            ranks=problem.wanted.ep,
            expert_groups=groups if nodes == hosts else 1,
            nodes=nodes,
        ).astype(np.int32)
        ordered = np.sort(slots_LGP, axis=-1)
        wasted = int((ordered[..., 1:] == ordered[..., :-1]).sum())
        notes = [_mode(groups, hosts, even)]
        if wasted:
            put = "1 replica beside another of its expert; it is wasted"
            if wasted > 1:
                put = f"{wasted} replicas beside others of their experts; they are wasted"
            notes.append(f"EPLB put {put}")
        return Solved(slots_LGP=slots_LGP, note="; ".join(filter(None, notes)))

    def _groups(self, problem: SlotProblem) -> int:
        return problem.expert_groups if self.expert_groups is None else self.expert_groups


def stand_evenly(node_G: npt.NDArray[np.int32]) -> bool:
    """Whether the first ranks stand on the first host (or domain) and so on, as many on each, as EPLB takes them to."""
    ranks, hosts = len(node_G), int(node_G.max()) + 1
    return ranks % hosts == 0 and bool((node_G == np.arange(ranks) // (ranks // hosts)).all())


def _mode(groups: int, hosts: int, even: bool) -> str:
    """Say which of its two ways the algorithm took, where there was a choice."""
    if hosts == 1:
        return ""
    if even and groups % hosts == 0:
        return f"EPLB, hierarchical: each of {groups} expert groups stands whole on one of {hosts} nodes"
    why = f"{groups} expert groups on {hosts} nodes do not divide"
    if groups == 1:
        why = "no expert groups are known of the router (n_group of its config, or --expert-groups)"
    elif not even:
        why = f"its ranks do not stand on the {hosts} nodes evenly and in order"
    return f"EPLB, global: {why}, so experts go to any rank"
