"""The arrays of a Plan, checked when one is made: which expert each slot holds, and how replicas share.

Axes: D EP group, L MoE layer, G rank inside an EP group, P slot of a rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.sim.slots import EMPTY, MOST_GROUP_SLOTS, MOST_SLOTS


def slot_table(slots: Any, layers: int, experts: int) -> npt.NDArray[np.int32]:
    """Slots as compiled loops read them: int32, contiguous, read-only, ids checked before the cast.

    Raises
    ------
    ValueError
        Names the value and the rule.
    """
    if not isinstance(slots, np.ndarray) or slots.dtype.kind not in "iu":
        raise ValueError("slots = not whole numbers: an array of whole numbers [group][layer][rank][slot]")
    if slots.ndim != 4 or 0 in (slots.shape[0], *slots.shape[2:]):
        raise ValueError(f"slots = shape {slots.shape}: 4 axes (groups, layers, ranks, slots), only layers may be none")
    if slots.shape[1] != layers:
        raise ValueError(f"layer_ids = {layers} layers: slots has {slots.shape[1]}")
    if slots.size > MOST_SLOTS:
        raise ValueError(f"slots = {slots.size} in all: at most {MOST_SLOTS}")
    if slots.shape[2] * slots.shape[3] > MOST_GROUP_SLOTS:
        in_group = f"{slots.shape[2]} ranks x {slots.shape[3]} of one layer and EP group"
        raise ValueError(f"slots = {in_group}: at most {MOST_GROUP_SLOTS}")
    if int(slots.min(initial=EMPTY)) < EMPTY or int(slots.max(initial=EMPTY)) >= experts:
        at = tuple(int(i) for i in np.argwhere((slots < EMPTY) | (slots >= experts))[0])
        group, layer, rank, slot = at
        place = f"slots[group {group}][layer {layer}][rank {rank}][slot {slot}]"
        raise ValueError(f"{place} = {int(slots[at])}: expert ids run from 0 to {experts - 1} (−1: empty)")
    table = np.ascontiguousarray(slots, np.int32)
    if table is slots and slots.flags.writeable:
        table = slots.copy()
    table.setflags(write=False)
    return table


def weight_table(weights: Any, slots_DLGP: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Shares that sum to 1 over the replicas of an expert, or are all 0: then they share evenly.

    Raises
    ------
    ValueError
        Names the value and the rule.
    """
    array = np.array(weights, np.float64)
    if array.shape != slots_DLGP.shape:
        raise ValueError(f"replica_weights = shape {array.shape}: the slots have {slots_DLGP.shape}")
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError("replica_weights = not finite or negative: every weight is finite and not negative")
    if array[slots_DLGP == EMPTY].any():
        raise ValueError("replica_weights = a weight of an empty slot: must be 0")
    for group, layer in np.ndindex(*slots_DLGP.shape[:2]):
        held = slots_DLGP[group, layer]
        sums = np.bincount(held[held != EMPTY], array[group, layer][held != EMPTY])
        wrong = np.flatnonzero((sums != 0) & (np.abs(sums - 1) > 1e-6))
        if len(wrong):
            expert, total = int(wrong[0]), float(sums[wrong[0]])
            rule = f"those of expert {expert} at layer {layer} of EP group {group} must sum to 1 (or all be 0)"
            raise ValueError(f"replica_weights = {total:g} in all: {rule}")
    array.setflags(write=False)
    return array
