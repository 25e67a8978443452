"""Layers set in turns: each layer's experts placed at best between those of its neighbours, until nothing gains.

With the layers before and after it standing still, the pairs that stay on a rank are linear in
where a layer's experts stand, so that the best places are an assignment problem of experts to
slots.

Axes: L MoE layer, E expert, G rank.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

MOST_SWEEPS = 50


def set_in_turns(pairs_LEE: Int, rank_LE: Int32, ranks: int) -> Int32:
    """Lower the pairs that cross, by layers in turns, forth and back.

    Ranks keep as many experts as they have.

    Parameters
    ----------
    pairs_LEE
        Pairs of choices at consecutive layers, [L − 1, E, E].
    rank_LE
        Where to start.

    Returns
    -------
    int32 [L, E], with no more pairs apart than at the start.
    """
    from scipy.optimize import linear_sum_assignment  # .4 s, and few commands need it

    rank_LE, layers = rank_LE.copy(), len(rank_LE)
    order = [*range(1, layers), *range(layers - 2, -1, -1)]
    for _ in range(MOST_SWEEPS):
        gained = False
        for layer in order:
            kept_EG = _kept(pairs_LEE, rank_LE, layer, ranks)
            slot_rank = np.sort(rank_LE[layer])
            expert, slot = linear_sum_assignment(kept_EG[:, slot_rank], maximize=True)
            new_E = np.empty_like(rank_LE[layer])
            new_E[expert] = slot_rank[slot]
            at = np.arange(len(new_E))
            if kept_EG[at, new_E].sum() > kept_EG[at, rank_LE[layer]].sum():
                rank_LE[layer], gained = new_E, True
        if not gained:
            break
    return rank_LE


def _kept(pairs_LEE: Int, rank_LE: Int32, layer: int, ranks: int) -> Int:
    """[E, G]: pairs of each of the layer's experts with those of its neighbours on each rank."""
    kept_EG = np.zeros((rank_LE.shape[1], ranks), np.int64)
    if layer > 0:
        kept_EG += pairs_LEE[layer - 1].T @ np.eye(ranks, dtype=np.int64)[rank_LE[layer - 1]]
    if layer + 1 < len(rank_LE):
        kept_EG += pairs_LEE[layer] @ np.eye(ranks, dtype=np.int64)[rank_LE[layer + 1]]
    return kept_EG
