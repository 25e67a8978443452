"""How tokens go on from the experts of one MoE layer to those of the next: what affinity between layers is made of.

Axes: L MoE layer (transitions have L − 1), E expert, G rank, P slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.traces import transition_LEE

if TYPE_CHECKING:
    from moecast.placement.problem import PlacementProblem

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


def count_transitions(problem: PlacementProblem) -> Int:
    """Count the pairs of a token's choices at consecutive layers, over the tokens that searches look at.

    Returns
    -------
    int64 [L − 1, E, E]: from an expert of layer l (rows) to one of layer l + 1 (columns), each of
    the K × K pairs of a token once.
    """
    return transition_LEE(problem.trace.select(problem.windows.row_T))


def crossing_share(pairs_LEE: Int, rank_LE: Int32) -> float:
    """Give the part of the pairs whose experts stand on different ranks; 0 where there are none.

    Parameters
    ----------
    rank_LE
        The rank of each expert, each standing on one.
    """
    apart_LEE = rank_LE[:-1, :, None] != rank_LE[1:, None, :]
    return float((pairs_LEE * apart_LEE).sum() / max(int(pairs_LEE.sum()), 1))


def slots_of_ranks(rank_LE: Int32, empty_LGP: Int32) -> Int32:
    """Fill a table of empty slots with each rank's experts, in order.

    Parameters
    ----------
    empty_LGP
        Slots, enough on every rank.
    """
    slots_LGP = empty_LGP.copy()
    for slots_GP, rank_E in zip(slots_LGP, rank_LE, strict=True):
        for rank, slots_P in enumerate(slots_GP):
            held = np.flatnonzero(rank_E == rank)
            slots_P[: len(held)] = held
    return slots_LGP
