"""What no plan can beat when all that is known is how often each expert is chosen.

An expert's load is taken as even over its replicas, as EPLB does and as the replica rule
``round_robin`` comes to. Axes: L MoE layer, E expert, G rank, P slot, R replica or item.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.placement.eplb import replicate
from moecast.sim.slots import EMPTY

Float = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


def rank_load_LG(slots_LGP: Int32, load_LE: Counts) -> Float:
    """Choices that each rank serves: each replica the same part of its expert's."""
    layers, ranks, _ = slots_LGP.shape
    loads_LG = np.zeros((layers, ranks))
    for layer, (slots_GP, load_E) in enumerate(zip(slots_LGP, load_LE, strict=True)):
        held_GP = slots_GP != EMPTY
        replicas_E = np.bincount(slots_GP[held_GP], minlength=len(load_E))
        share_E = load_E / np.maximum(replicas_E, 1)
        loads_LG[layer] = np.where(held_GP, share_E[np.where(held_GP, slots_GP, 0)], 0.0).sum(axis=1)
    return loads_LG


def fullest_rank_bound_L(load_LE: Counts, slots_G: Int32) -> Float:
    """The least that the fullest rank of each layer can serve, whatever plan with these slots.

    The largest of three: the mean; the heaviest replica when the spare slots are given so that it
    is lightest, or the heaviest expert over all ranks, if that is more; and, without spare slots,
    the lightest k + 1 of the k·G + 1 heaviest experts, since some rank holds that many of them.
    """
    ranks, slots = len(slots_G), int(slots_G.sum())
    bounds = [load_LE.sum(axis=1) / ranks, load_LE.max(axis=1) / ranks]
    # Giving each spare slot to the heaviest share is the best there is for the heaviest share.
    bounds.append(np.array([replicate(load_E.astype(np.float64), slots)[1].max() for load_E in load_LE]))
    if slots == load_LE.shape[1]:
        sorted_LR = -np.sort(-load_LE, axis=1)
        most = (load_LE.shape[1] - 1) // ranks
        bounds += [sorted_LR[:, k * ranks - k : k * ranks + 1].sum(axis=1) for k in range(1, most + 1)]
    return np.max(np.stack(bounds).astype(np.float64), axis=0)
