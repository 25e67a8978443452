"""Ranks trade what they hold, so that as many tokens as can be find an expert on the rank that holds them.

Balance, fan-out and what travels between domains of equal size stay what they are: only names
change. It pays where requests are placed by topic (`Workload.request_placement`), since ranks then
hold tokens that choose alike; where each rank holds tokens of all kinds it gains nothing. In each
layer it is an assignment problem, of whole domains first and then of the ranks of each.

Axes: L MoE layer, T token, K choice, E expert, G rank that holds tokens, H what a rank holds, N and
M domain, P slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.eplb import stand_evenly
from moecast.sim.slots import EMPTY

if TYPE_CHECKING:
    from moecast.placement.problem import PlacementProblem

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


def near_requests(slots_LGP: Int32, problem: PlacementProblem) -> Int32:
    """Let ranks with equally many slots trade what they hold, in each layer by itself.

    Returns
    -------
    int32 [L, G, P]: the same contents on other ranks; as they were where slots differ or domains
    are uneven.
    """
    if np.ptp(problem.slots_G) or not stand_evenly(problem.domain_G):
        return slots_LGP
    windows = problem.windows
    row_T, rank_T = windows.row_T[windows.counted_T], windows.rank_T[windows.counted_T]
    traded_LGP = slots_LGP.copy()
    for layer, slots_GP in enumerate(slots_LGP):
        found_GH = tokens_found(problem.trace.experts_TLK[row_T, layer], rank_T, slots_GP, problem.wanted.experts)
        traded_LGP[layer] = slots_GP[_assigned(found_GH, problem.domain_G)]
    return traded_LGP


def tokens_found(chosen_TK: npt.NDArray[np.uint16], rank_T: Int32, slots_GP: Int32, experts: int) -> Int:
    """Count the tokens of each rank (rows) that choose any expert among what each rank holds (columns)."""
    ranks = len(slots_GP)
    holds_EH = np.zeros((experts + 1, ranks), bool)  # the last row is no choice
    rank_S, slot_S = np.nonzero(slots_GP != EMPTY)
    holds_EH[slots_GP[rank_S, slot_S], rank_S] = True
    found_GH = np.zeros((ranks, ranks), np.int64)
    for rank in range(ranks):
        of_rank_TK = np.minimum(chosen_TK[rank_T == rank], experts)
        found_GH[rank] = holds_EH[of_rank_TK].any(1).sum(0)
    return found_GH


def _assigned(found_GH: Int, domain_G: Int32) -> Int:
    """What each rank should hold: the former holder's number."""
    from scipy.optimize import linear_sum_assignment  # .4 s, and few commands need it

    domains = int(domain_G.max()) + 1
    members_NG = np.argsort(domain_G, kind="stable").reshape(domains, -1)
    by_domain_NM = np.array([[found_GH[np.ix_(here, there)].sum() for there in members_NG] for here in members_NG])
    _, taken_N = linear_sum_assignment(by_domain_NM, maximize=True)
    held_G = np.empty(len(found_GH), np.int64)
    for here, domain in zip(members_NG, taken_N, strict=True):
        there = members_NG[domain]
        rank, held = linear_sum_assignment(found_GH[np.ix_(here, there)], maximize=True)
        held_G[here[rank]] = there[held]
    return held_G
