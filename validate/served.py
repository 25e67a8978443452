"""Which slot serves each choice of a step: the plan's replica rule, choice by choice.

`moecast.sim.traffic` counts the same thing in one compiled pass without keeping it; the replay
needs the choices themselves, and the tests hold the two against each other.

Axes: T token of the step, L MoE layer, K choice, G rank, R choice in order of token, X candidate
slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.sim import Plan, ReplicaTable
from moecast.sim.lplb import split_of_step
from moecast.sim.simulated import check_simulated, check_whole_experts
from moecast.sim.traffic import checked_choices
from moecast.traces import NO_CHOICE

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """Where the choices of a step go.

    Parameters
    ----------
    source_T
        The rank that holds each token.
    rank_TLK, slot_TLK
        The rank that serves each choice and the slot there; -1 where there is no choice.
    """

    source_T: Int32
    rank_TLK: Int32
    slot_TLK: Int32

    def choices_from(self, source: int, layer: int) -> tuple[Int, Int]:
        """List the (token, choice) pairs that `source` sends at a layer, by serving rank, then token, then choice."""
        return self._ordered(self.source_T[:, None] == source, layer, by=self.rank_TLK[:, layer])

    def choices_to(self, rank: int, layer: int) -> tuple[Int, Int]:
        """List the (token, choice) pairs that `rank` serves at a layer, by source rank, then token, then choice."""
        source_TK = np.broadcast_to(self.source_T[:, None], self.rank_TLK[:, layer].shape)
        return self._ordered(self.rank_TLK[:, layer] == rank, layer, by=source_TK)

    def choices_SD(self, layer: int, ranks: int) -> Int:
        """Count the choices by source and serving rank."""
        made_TK = self.rank_TLK[:, layer] >= 0
        source_TK = np.broadcast_to(self.source_T[:, None], made_TK.shape).astype(np.int64)
        pair_R = source_TK[made_TK] * ranks + self.rank_TLK[:, layer][made_TK]
        return np.bincount(pair_R, minlength=ranks * ranks).reshape(ranks, ranks)

    def _ordered(self, wanted_TK: npt.NDArray[np.bool_], layer: int, *, by: Int32) -> tuple[Int, Int]:
        token_R, choice_R = np.nonzero(wanted_TK & (self.rank_TLK[:, layer] >= 0))
        order = np.argsort(by[token_R, choice_R], kind="stable")
        return token_R[order], choice_R[order]


def serve(
    plan: Plan,
    domain_G: Int32,
    experts_TLK: npt.NDArray[np.uint16],
    source_T: Int32,
    *,
    node_G: Int32 | None = None,
) -> Served:
    """Send every choice to a slot by the plan's replica rule; tokens are taken in the order given.

    Parameters
    ----------
    domain_G
        The NVLink domain of each rank.
    experts_TLK
        The choices of the step's tokens.
    source_T
        The rank that holds each token.
    node_G
        The host of each rank; None: every domain is a host.

    Raises
    ------
    ValueError, TypeError
        Arrays that do not fit each other or the plan, or ids that do not exist.
    MoecastError
        The plan says what is not simulated yet.
    """
    check_simulated(plan)
    check_whole_experts(plan)
    experts_TLK = checked_choices(experts_TLK, plan)
    shape = (len(experts_TLK),)
    source_T = whole_numbers("source_T", source_T, most=plan.ranks - 1, shape=shape, dtype=np.int32)
    table, peer_SM = ReplicaTable.of(plan, domain_G, node_G=node_G), plan.layout.peers_of_ranks("ep")
    made_SLE: Int = np.arange(plan.ranks).repeat(plan.layers * plan.experts).reshape(-1, plan.layers, plan.experts)
    if plan.replica_rule == "lplb":
        table, before_SLE = split_of_step(plan, table, experts_TLK, np.arange(len(source_T)), source_T)
        made_SLE = before_SLE.astype(np.int64)
    rank_TLK = np.full(experts_TLK.shape, -1, np.int32)
    slot_TLK = np.full(experts_TLK.shape, -1, np.int32)
    for layer in range(plan.layers):
        made_TK = experts_TLK[:, layer] != NO_CHOICE
        expert_R = experts_TLK[:, layer][made_TK].astype(np.int64)
        source_R = np.broadcast_to(source_T[:, None], made_TK.shape)[made_TK].astype(np.int64)
        turn_R = _turns(source_R * plan.experts + expert_R) + made_SLE[source_R, layer, expert_R]
        candidates_R = table.candidates_R[table.row_of_S[source_R] + layer * plan.experts + expert_R]
        place_R = table.place_X[_pick(candidates_R >> 16, candidates_R & 0xFFFF, turn_R, table.below_X)]
        rank_TLK[:, layer][made_TK] = peer_SM[source_R, place_R >> 16 & 0xFFFF]
        slot_TLK[:, layer][made_TK] = (place_R >> 32) % plan.max_slots
    return Served(source_T=source_T, rank_TLK=rank_TLK, slot_TLK=slot_TLK)


def _turns(key_R: Int) -> Int:
    """How many equal keys stand before each."""
    order = np.argsort(key_R, kind="stable")
    ordered = key_R[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    first = np.repeat(starts, np.diff(starts, append=len(ordered)))
    turn_R = np.empty(len(key_R), np.int64)
    turn_R[order] = np.arange(len(key_R)) - first
    return turn_R


def _pick(first_R: Int, count_R: Int, turn_R: Int, below_X: npt.NDArray[np.float64]) -> Int:
    if len(below_X) == 0:
        return first_R + turn_R % count_R
    point_R = np.modf((turn_R + 0.5) * GOLDEN)[0]
    chosen_R = first_R.copy()
    for candidate in range(int(count_R.max(initial=1)) - 1):
        at_R = np.minimum(first_R + candidate, len(below_X) - 1)
        chosen_R += (candidate < count_R - 1) & (point_R >= below_X[at_R])
    return chosen_R
