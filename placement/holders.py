"""Which replicas an expert has while a search gives and takes them, and which of them serves a choice.

Axes: E expert, R replica, by its place in the expert's list, V item, G rank, Q place (domain or
host), W window.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.compiled import inner
from moecast.sim.replica_rule import NOBODY, list_nearest

Float = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]


class Holders(NamedTuple):
    """The items that hold each expert, in the order of their numbers.

    Parameters
    ----------
    item_ER, replicas_E
        The items of each expert, and how many there are.
    place_G
        What a source takes its replica from first where any stands there: the domain or host of
        each rank; all 0 where the replica rule knows no near and far.
    load_EQW
        Seconds that the choices of each expert from sources in each place cost whoever serves them.
    held_s_W
        Seconds that a replica costs its rank, whatever it serves.
    """

    item_ER: npt.NDArray[np.int16]
    replicas_E: Int32
    place_G: Int32
    load_EQW: Float
    held_s_W: Float

    @classmethod
    def of(cls, expert_V: Int32, place_G: Int32, load_EQW: Float, held_s_W: Float) -> Holders:
        """List the items of each expert."""
        experts = len(load_EQW)
        held_V = np.flatnonzero(expert_V >= 0)
        order = held_V[np.argsort(expert_V[held_V], kind="stable")]
        replicas_E = np.bincount(expert_V[held_V], minlength=experts).astype(np.int32)
        item_ER = np.full((experts, len(place_G) + 1), -1, np.int16)
        first_E = np.cumsum(replicas_E) - replicas_E
        item_ER[expert_V[order], np.arange(len(order)) - first_E[expert_V[order]]] = order
        return cls(item_ER, replicas_E, place_G.astype(np.int32), load_EQW, held_s_W)


@inner
def in_turn(holders: Any, rank_V: Any, expert: int) -> tuple[Any, Any]:
    """List which of an expert's replicas serve its choices from each place in turn: R [Q, R], and how many [Q].

    A search lists them once for all of the expert's choices: only what moves the expert's own
    replicas changes them.
    """
    places, replicas = holders.load_EQW.shape[1], holders.replicas_E[expert]
    turn_QR, number_Q = np.empty((places, replicas), np.int64), np.empty(places, np.int64)
    for place in range(places):
        number_Q[place] = list_nearest(
            holders.item_ER[expert], 0, replicas, rank_V, holders.place_G, NOBODY, place, turn_QR[place], 0
        )
    return turn_QR, number_Q


@inner
def share_load(holders: Any, rank_V: Any, expert: int, out_RW: Any) -> None:
    """Work out what each replica of an expert costs its rank, the choices from each place being shared evenly.

    Evenly, since whose turn it is with few choices is an accident of the drawn steps, to which no
    plan should be fitted.
    """
    turn_QR, number_Q = in_turn(holders, rank_V, expert)
    for r in range(holders.replicas_E[expert]):
        out_RW[r] = holders.held_s_W
    for place in range(len(number_Q)):
        for i in range(number_Q[place]):
            for w in range(out_RW.shape[1]):
                out_RW[turn_QR[place, i], w] += holders.load_EQW[expert, place, w] / number_Q[place]


@inner
def take_item(holders: Any, expert: int, v: int) -> None:
    """Strike an item from an expert's list."""
    # Those behind it move up and the order stays: whose turn it is goes by the place in the list.
    last, found = holders.replicas_E[expert] - 1, False
    for r in range(last):
        found = found or holders.item_ER[expert, r] == v
        if found:
            holders.item_ER[expert, r] = holders.item_ER[expert, r + 1]
    holders.item_ER[expert, last] = -1
    holders.replicas_E[expert] = last


@inner
def give_item(holders: Any, expert: int, v: int) -> None:
    """Enter an item in an expert's list, which stays in the order of items: given and taken again, nothing changes."""
    r = holders.replicas_E[expert]
    while r > 0 and holders.item_ER[expert, r - 1] > v:
        holders.item_ER[expert, r] = holders.item_ER[expert, r - 1]
        r -= 1
    holders.item_ER[expert, r] = v
    holders.replicas_E[expert] += 1
