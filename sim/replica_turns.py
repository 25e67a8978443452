"""The turns of the replica rules that deal choices out one after another: `moecast.sim.replicas`, for a search.

Axes: T token, K choice, E expert.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.compiled import njit
from moecast.traces.meta import NO_CHOICE

Int32 = npt.NDArray[np.int32]


@njit(cache=True)
def turns(experts_TK: npt.NDArray[np.uint16], rank_T: Int32, step_T: Int32, experts: int) -> Int32:
    """Whose turn each choice is, among the replicas that may serve it: int32 [T, K].

    A source's i-th choice of an expert in a step takes replica (i + source) mod r, whatever r is: a search asks before
    it knows where replicas stand.
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
