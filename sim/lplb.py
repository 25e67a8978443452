"""Replica rule ``lplb``: each step's load of replicated experts is split so that the fullest rank has least.

Source: DeepSeek's LPLB (github.com/deepseek-ai/LPLB): a linear program for each layer and batch,
from the counts of the batch itself, moves tokens between the replicas of an expert; which experts
have replicas, and where, is a plan's. Its objective, the fullest rank of an EP group, is solved
exactly here (HiGHS), without the cost of counting and solving.

The i-th choice of an expert, counted over all sources of its EP group in the order of ranks, takes
the slot in whose share of [0, 1) the point frac((i + ½) · φ) falls: any run of choices is spread
close to the shares.

Axes: D EP group, L MoE layer, E expert, G rank of a group, S source rank, P slot of a group, R
(group, layer, expert) row and X (row, slot) pair as in `ReplicaTable`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry
from moecast.sim.replicas import ReplicaTable, laid_end_to_end

if TYPE_CHECKING:
    from moecast.sim.plan import Plan

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float = npt.NDArray[np.float64]


def split_of_step(
    plan: Plan, table: ReplicaTable, experts_TLK: npt.NDArray[np.uint16], token_T: Int, home_T: Int32
) -> tuple[ReplicaTable, npt.NDArray[np.uint32]]:
    """Split one step's choices over the replicas.

    Parameters
    ----------
    table
        Of the plan: all slots of each expert.
    experts_TLK, token_T, home_T
        The trace's choices, the rows of the step's tokens, and the ranks that hold them when the
        step begins.

    Returns
    -------
    The table with the shares of this step, and for each source, layer and expert [S, L, E] how many
    choices of it the sources before it in its group make.
    """
    group_S = plan.layout.group_G.astype(np.int64)
    count_SLE = _count(experts_TLK, token_T, home_T, plan.ranks, plan.experts)
    load_DLE = np.zeros((plan.groups, plan.layers, plan.experts), np.int64)
    np.add.at(load_DLE, group_S, count_SLE)
    first_R, count_R = table.candidates_R >> 16, table.candidates_R & 65535
    slot_X = (table.place_X >> 32).astype(np.int32)
    share_X = np.concatenate(
        [
            split_layer(load_E, first_R[rows], count_R[rows], slot_X, plan.max_slots, plan.ep)
            for load_E, rows in zip(
                load_DLE.reshape(-1, plan.experts),
                np.arange(len(first_R)).reshape(-1, plan.experts),
                strict=True,
            )
        ]
    )
    below_X = laid_end_to_end(share_X, first_R, count_R)
    return replace(table, below_X=below_X), _made_before(count_SLE, group_S)


def split_layer(load_E: Int, first_E: Int, count_E: Int, slot_X: Int32, slots: int, ranks: int) -> Float:
    """Split one layer's choices in one EP group, so that the fullest rank serves least.

    Parameters
    ----------
    load_E
        Choices of each expert.
    first_E, count_E, slot_X
        The slots that hold each expert: `count_E` of `slot_X` from `first_E` on, one expert after
        another.
    slots, ranks
        Slots of a rank, and ranks.

    Returns
    -------
    Choices that each of these slots takes, in that order; 1 for those of experts that nobody chose.
    """
    begin, total = int(first_E[0]), int(count_E.sum())
    rank_X = slot_X[begin : begin + total] // slots
    expert_X = np.repeat(np.arange(len(load_E)), count_E)
    share_X = np.maximum(load_E[expert_X], 1) / count_E[expert_X]
    free_X = (count_E[expert_X] > 1) & (load_E[expert_X] > 0)
    if not free_X.any():
        return share_X
    alone_X = load_E[expert_X] * (count_E[expert_X] == 1)
    fixed_G = np.bincount(rank_X[~free_X], alone_X[~free_X], ranks).astype(np.float64)
    share_X[free_X] = _least_fullest(load_E, expert_X[free_X], rank_X[free_X], fixed_G)
    return share_X


def _least_fullest(load_E: Int, expert_V: Int, rank_V: Int32, fixed_G: Float) -> Float:
    """The linear program: how much each replica V takes, at the least maximum over ranks of what they serve."""
    from scipy.optimize import linprog  # .1 s, and only this rule needs it
    from scipy.sparse import coo_array

    ranks, replicas = len(fixed_G), len(expert_V)
    shared_E, row_V = np.unique(expert_V, return_inverse=True)
    at_V = np.arange(replicas)
    whole = coo_array((np.ones(replicas), (row_V, at_V)), shape=(len(shared_E), replicas + 1))
    entries = np.concatenate([np.ones(replicas), -np.ones(ranks)])
    rows = np.concatenate([rank_V, np.arange(ranks)])
    columns = np.concatenate([at_V, np.full(ranks, replicas)])
    below = coo_array((entries, (rows, columns)), shape=(ranks, replicas + 1))
    cost = np.zeros(replicas + 1)
    cost[-1] = 1.0
    # sparse ones are not in scipy's stubs
    matrices: dict[str, Any] = {"A_ub": below.tocsr(), "A_eq": whole.tocsr()}
    solved = linprog(cost, b_ub=-fixed_G, b_eq=load_E[shared_E], method="highs-ds", **matrices)
    assert solved.x is not None, solved.message  # an even split is feasible, and no load is below 0
    return np.maximum(solved.x[:-1], 0.0)


def _made_before(count_SLE: Int32, group_S: Int) -> npt.NDArray[np.uint32]:
    """[S, L, E]: choices of each expert by the sources before each one in its group."""
    before_SLE = np.empty(count_SLE.shape, np.uint32)
    for group in range(int(group_S.max()) + 1):
        of_group = group_S == group
        counts = count_SLE[of_group]
        before_SLE[of_group] = np.cumsum(counts, axis=0) - counts
    return before_SLE


@entry
def _count(experts_TLK, token_T, home_T, ranks, experts):  # type: ignore[no-untyped-def]
    """[S, L, E]: choices of each expert by the tokens at home on each source."""
    layers, choices = experts_TLK.shape[1], experts_TLK.shape[2]
    count_SLE = np.zeros((ranks, layers, experts), np.int32)
    for t in range(len(token_T)):
        for layer in range(layers):
            for k in range(choices):
                expert = experts_TLK[token_T[t], layer, k]
                if expert != 65535:
                    count_SLE[home_T[t], layer, expert] += 1
    return count_SLE
