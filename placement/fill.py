"""Empty slots filled with replicas, for engines that have no empty ones.

Axes: L MoE layer, E expert, G rank, P slot.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.sim.slots import EMPTY

Int32 = npt.NDArray[np.int32]


def fill_slots(slots_LGP: Int32, load_LE: npt.NDArray[np.int64], slots_G: Int32) -> tuple[Int32, int]:
    """Give each empty slot the expert with most choices per replica that its rank does not hold yet.

    Parameters
    ----------
    slots_LGP
        A placement, -1 where empty.
    load_LE
        Choices of each expert.
    slots_G
        Slots that each rank has; those beyond stay empty.

    Returns
    -------
    The filled placement, and how many slots were filled. A rank that already holds every expert
    keeps its empty slots.
    """
    filled_LGP = slots_LGP.copy()
    count = 0
    for layer_GP, load_E in zip(filled_LGP, load_LE, strict=True):
        replicas_E = np.bincount(layer_GP[layer_GP != EMPTY], minlength=len(load_E))
        for rank, slot in np.argwhere(layer_GP == EMPTY):
            if slot >= slots_G[rank]:
                continue
            free_E = np.ones(len(load_E), bool)
            free_E[layer_GP[rank][layer_GP[rank] != EMPTY]] = False
            if not free_E.any():
                continue
            expert = int(np.argmax(np.where(free_E, load_E / np.maximum(replicas_E, 1), -1.0)))
            layer_GP[rank, slot] = expert
            replicas_E[expert] += 1
            count += 1
    return filled_LGP, count
