"""Which rank serves each choice of a trace: the plan's replica rule, token by token.

Axes: T token, L MoE layer, E expert, K choice, G rank, S source rank, P slot of an EP group.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.sim.plan import Plan
from moecast.sim.replicas import ReplicaTable
from moecast.sim.traffic_pass import Serving, rank_choices


class ServingRanks:
    """The ranks that serve the choices of tokens, in the order in which they come: all of them make one step.

    Parameters
    ----------
    plan
        Slots and replica rule, one pipeline stage. Ranks are those of all its EP groups in order.
    domain_G
        The domain of each rank, which the rule ``nearest`` asks for.

    Raises
    ------
    ValueError
        As in `ReplicaTable.of`, or `domain_G` is not one domain for each rank.
    """

    def __init__(self, plan: Plan, domain_G: npt.NDArray[np.int32]) -> None:
        if domain_G.shape != (plan.ranks,):
            raise ValueError(f"domain_G has {domain_G.shape}, expected one domain for each of {plan.ranks} ranks")
        self._plan = plan
        self._serving = Serving.of(plan, ReplicaTable.of(plan, domain_G))
        self._served_SLP = np.zeros((plan.ranks, plan.layers, plan.ep * plan.max_slots), np.int32)

    def next_TLK(self, experts_TLK: npt.NDArray[np.uint16], home_T: npt.NDArray[np.int32]) -> npt.NDArray[np.uint16]:
        """Rank of each choice of the next tokens, which are at home on `home_T`; 65535 for no choice.

        Raises
        ------
        ValueError
            Arrays that do not fit each other or the plan, or a home that is no rank.
        """
        if experts_TLK.shape != (len(home_T), self._plan.layers, self._plan.choices):
            expected = (len(home_T), self._plan.layers, self._plan.choices)
            raise ValueError(f"experts_TLK has {experts_TLK.shape}, expected {expected}")
        if len(home_T) and not 0 <= home_T.min() <= home_T.max() < self._plan.ranks:
            raise ValueError(f"home_T: a rank outside 0…{self._plan.ranks - 1}")
        rank_TLK = np.empty(experts_TLK.shape, np.uint16)
        homes_T = np.ascontiguousarray(home_T, np.int32)
        rank_choices(experts_TLK, np.arange(len(homes_T)), homes_T, self._serving, self._served_SLP, rank_TLK)
        return rank_TLK
