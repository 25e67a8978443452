"""A quick plan from loads alone, to say what a plan made on one part of a trace is worth on another.

Solvers that make plans to run are in `moecast.placement`. Axes: L MoE layer, E expert, G rank, C
part.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.arrays import index, numbers, whole_numbers
from moecast.traces.meta import MAX_RANKS
from moecast.traces.statistics._parts import pack
from moecast.traces.statistics.summary import Fractions, balance_L, mean_known, rank_load_LG


def packed_ranks_LE(load_LE: npt.ArrayLike, n_ranks: int) -> npt.NDArray[np.int32]:
    """Rank of each expert when the heaviest goes first, to the least loaded rank with a slot left: int32 [L, E].

    Longest processing time first with ⌈E / G⌉ slots to a rank (the balanced packing of DeepSeek's
    EPLB, no replicas).

    Raises
    ------
    ValueError, TypeError
        More ranks than experts, or none; loads that are negative or no numbers.
    """
    table_LE = numbers("load_LE", load_LE, shape=(None, None))
    n_ranks = index("n_ranks", n_ranks, least=1, most=table_LE.shape[1])
    rank_LE = np.empty(table_LE.shape, np.int32)
    # sorted here, since a sort takes seconds to compile; stable, so that equal loads go by expert
    # id
    order_LE = np.argsort(-table_LE, axis=1, kind="stable")
    pack(table_LE, order_LE, n_ranks, rank_LE)
    return rank_LE


def load_balance(load_LE: npt.NDArray[np.int64], rank_LE: npt.NDArray[np.int32], n_ranks: int) -> float:
    """Balance of a placement under a load: mean / max over ranks, averaged over the layers with any load.

    Raises
    ------
    ValueError, TypeError
        Ranks that are not there, or that are not one for each load.
    """
    n_ranks = index("n_ranks", n_ranks, least=1, most=MAX_RANKS)
    rank_LE = whole_numbers("rank_LE", rank_LE, most=n_ranks - 1, shape=load_LE.shape, dtype=np.int32)
    return mean_known(balance_L(rank_load_LG(load_LE, rank_LE, n_ranks)))


def balance_CC(load_CLE: npt.NDArray[np.int64], n_ranks: int) -> Fractions:
    """Balance that a plan packed on part i (row) gets on part j (column)."""
    plans = [packed_ranks_LE(load_LE, n_ranks) for load_LE in load_CLE]
    return np.array([[load_balance(load_LE, plan, n_ranks) for load_LE in load_CLE] for plan in plans]).reshape(
        len(plans), len(plans)
    )
