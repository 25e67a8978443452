"""Which replica serves a choice, by rules that ask no step for its load: one code for traffic and for a search.

A rule says *who may serve* a source's choices of an expert, in some order (`list_nearest`), and
*whose turn* it is among them: each choice's in turn (`turns`), or always the same one's. Traffic
asks it of the slots of a plan, once (`moecast.sim.replicas`); a search of items that go from rank
to rank, again and again (`moecast.placement.holders`).

Axes: T token, K choice, E expert, X holder: whatever holds an expert, an expert's one behind the
other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner
from moecast.traces.meta import NO_CHOICE

Int32 = npt.NDArray[np.int32]

NOBODY = -1
"""The rank of a source that takes no replica of its own rank first."""


@inner
def list_nearest(
    holder_X: Any, begin: int, end: int, rank_of: Any, place_G: Any, source: int, place: int, out_X: Any, at: int
) -> int:
    """List those of an expert's holders that stand nearest to a source; returns how many there are.

    On its own rank; where there are none, in its own place; where there are none, anywhere. All of
    them come where all stand in one place.

    Parameters
    ----------
    holder_X, begin, end
        Its holders are those from `begin` to before `end`.
    rank_of, place_G
        The rank of each holder, by its number, and the place (domain or host) of each rank.
    source, place
        The source's rank, or `NOBODY`, and its place.
    out_X, at
        Where, and from which index on, to write which X they are, in order.
    """
    nearest, found = 0, 0
    for x in range(begin, end):
        rank = rank_of[holder_X[x]]
        near = 2 if rank == source else 1 if place_G[rank] == place else 0
        if near > nearest:  # whoever came before stands farther off: one pass does for any order of holders
            nearest, found = near, 0
        if near == nearest:
            out_X[at + found] = x
            found += 1
    return found


@entry
def turns(experts_TK: npt.NDArray[np.uint16], rank_T: Int32, step_T: Int32, experts: int) -> Int32:
    """Whose turn each choice is, among the replicas that may serve it: int32 [T, K].

    A source's i-th choice of an expert in a step takes replica (i + source) mod r, whatever r is: a
    search asks before it knows where replicas stand.
    """
    turn_TK = np.zeros(experts_TK.shape, np.int32)
    next_E = np.zeros(experts, np.int32)
    for t in range(len(experts_TK)):
        # Every source starts anew, and each at another replica than the last one.
        if t == 0 or step_T[t] != step_T[t - 1] or rank_T[t] != rank_T[t - 1]:
            next_E[:] = rank_T[t]
        for k in range(experts_TK.shape[1]):
            expert = experts_TK[t, k]
            if expert != NO_CHOICE:
                turn_TK[t, k] = next_E[expert]
                next_E[expert] += 1
    return turn_TK
