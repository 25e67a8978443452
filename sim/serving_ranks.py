"""Which rank serves each choice of a trace: the plan's replica rule, token by token.

Axes: T token, L MoE layer, E expert, K choice, G rank, S source rank, P slot of an EP group.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.errors import MoecastError
from moecast.sim.plan import Plan
from moecast.sim.replicas import ReplicaTable
from moecast.sim.simulated import check_simulated, check_whole_experts
from moecast.sim.traffic import checked_choices
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
    MoecastError
        The plan says what is not simulated yet, or its rule needs to know which tokens make a step
        (``lplb``).
    """

    def __init__(self, plan: Plan, domain_G: npt.NDArray[np.int32]) -> None:
        check_simulated(plan)
        check_whole_experts(plan)
        if plan.replica_rule == "lplb":
            rule = "lplb splits the load of a step, and a trace is read here without steps: use another rule"
            raise MoecastError(rule, field="replica_rule", value="lplb")
        self._plan = plan
        self._serving = Serving.of(plan, ReplicaTable.of(plan, domain_G))
        self._served_SLP = np.zeros((plan.ranks, plan.layers, plan.ep * plan.max_slots), np.int32)

    def next_TLK(self, experts_TLK: npt.NDArray[np.uint16], home_T: npt.NDArray[np.int32]) -> npt.NDArray[np.uint16]:
        """Rank of each choice of the next tokens, which are at home on `home_T`.

        65535 for no choice.

        Raises
        ------
        ValueError
            Arrays that do not fit each other or the plan, or a home that is no rank.
        """
        experts_TLK = checked_choices(experts_TLK, self._plan)
        shape = (len(experts_TLK),)
        homes_T = whole_numbers("home_T", home_T, most=self._plan.ranks - 1, shape=shape, dtype=np.int32)
        rank_TLK = np.empty(experts_TLK.shape, np.uint16)
        rank_choices(experts_TLK, np.arange(len(homes_T)), homes_T, self._serving, self._served_SLP, rank_TLK)
        return rank_TLK
