"""SGLang's other balancer (``--eplb-algorithm deepseek_vec``), after the idea of its public code.

It knows the loads of single windows (an engine's recorded steps) and not only their sum: each spare
slot goes to the expert whose replica lowers the sum over windows of the heaviest load per replica
most. Replicas are then dealt to ranks in turns, forth and back, the heaviest first. Where the
router has groups that the nodes divide, groups are packed onto nodes first, as EPLB does. Its
default is DeepSeek's EPLB unchanged, which is solver `eplb` (sgl-project/sglang,
python/sglang/srt/eplb/eplb_algorithms).

Axes: L MoE layer, W window, E expert, S slot, I expert group, G rank, P slot of a rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.eplb import pack, stand_evenly
from moecast.placement.solver import Solved

if TYPE_CHECKING:
    from moecast.placement.limit import Budget
    from moecast.placement.objective import Objective
    from moecast.placement.problem import PlacementProblem

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangVec:
    """Replicas where single windows have their peaks, then dealt to ranks in turns."""

    name: str = "sglang-vec"

    def supports(self, problem: PlacementProblem) -> str | None:
        """Take ranks with equally many slots."""
        return None if problem.slots_G.min() == problem.slots_G.max() else "needs equally many slots on every rank"

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:  # noqa: ARG002
        """Place each layer by the loads of its windows."""
        nodes, groups = int(problem.node_G.max()) + 1, problem.expert_groups
        sizes = (groups, problem.wanted.experts, int(problem.slots_G.sum()))
        whole = any(size % nodes for size in sizes) or not stand_evenly(problem.node_G)
        slots_LGP = problem.empty_slots_LGP()
        for slots_GP, load_WE in zip(slots_LGP, problem.windows.load_LWE, strict=True):
            slots_GP[:] = place_layer(
                load_WE,
                slots=slots_GP.size,
                ranks=len(slots_GP),
                groups=1 if whole else groups,
                nodes=1 if whole else nodes,
            )
        return Solved(slots_LGP=slots_LGP)


def place_layer(load_WE: Int, *, slots: int, ranks: int, groups: int = 1, nodes: int = 1) -> Int:
    """Place one layer's experts.

    Parameters
    ----------
    load_WE
        Choices of each expert in each window.
    slots, ranks
        Slots of all ranks together, and ranks that share them evenly.
    groups, nodes
        Groups of successive experts, and nodes that divide them; 1 and 1: any expert on any rank.

    Returns
    -------
    int64 [ranks, slots / ranks], the expert in each slot.
    """
    members_IE = np.arange(load_WE.shape[1]).reshape(groups, -1)
    placed = []
    for group_I in pack(load_WE.sum(0)[members_IE].sum(1).astype(np.float64), nodes):
        expert_E = members_IE[group_I].ravel()
        of_node_WE = load_WE[:, expert_E].astype(np.float64)
        replicas_E = replicas_by_windows(of_node_WE, round(slots / nodes))
        which_S = np.repeat(np.arange(len(expert_E)), replicas_E)
        share_S = (of_node_WE.sum(0) / replicas_E)[which_S]
        placed.append(expert_E[which_S[_in_turns(share_S, round(ranks / nodes))]])
    return np.concatenate(placed)


def replicas_by_windows(load_WE: Float, slots: int) -> Int:
    """Count the replicas of each expert, so that the sum over windows of the heaviest load per replica falls fastest.

    Returns
    -------
    int64 [E], at least 1 each, `slots` in all.
    """
    replicas_E, at = np.ones(load_WE.shape[1], np.int64), np.arange(len(load_WE))
    for _ in range(slots - len(replicas_E)):
        share_WE = load_WE / replicas_E
        first_W = share_WE.argmax(1)
        highest_W = share_WE[at, first_W]
        share_WE[at, first_W] = load_WE[at, first_W] / (replicas_E[first_W] + 1)
        gain_E = np.bincount(first_W, highest_W - share_WE.max(1), len(replicas_E))
        replicas_E[gain_E.argmax()] += 1
    return replicas_E


def _in_turns(share_S: Float, ranks: int) -> Int:
    """Deal slots to ranks, the heaviest first, one to each, then back from the last rank to the first, and so on."""
    dealt_PG = np.argsort(-share_S, kind="stable").reshape(-1, ranks)
    dealt_PG[1::2] = dealt_PG[1::2, ::-1]
    return dealt_PG.T
