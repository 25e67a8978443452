"""The arrays of a Plan, checked when one is made: which expert each slot holds, and how replicas share.

Axes: D EP group, L MoE layer, G rank inside an EP group, P slot of a rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.slots import EMPTY, MOST_GROUP_SLOTS, MOST_SLOTS
from moecast.sim.whole import whole


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


def contiguous_slots(
    groups_layers_ep: tuple[int, int, int], experts: int, slots_per_rank: int | None = None
) -> npt.NDArray[np.int32]:
    """Experts in order, ⌈E / ep⌉ to a rank, spare slots empty: int32 [D, L, G, P].

    Raises
    ------
    ValueError
        Slots that cannot hold every expert, or more than there may be.
    """
    groups, layers, ep = groups_layers_ep
    per_rank = -(-experts // ep)
    slots = per_rank if slots_per_rank is None else whole("slots_per_rank", slots_per_rank)
    if slots < per_rank:
        raise ValueError(f"{ep} ranks × {slots} slots cannot hold {experts} experts: need {per_rank} slots a rank")
    if groups * layers * ep * slots > MOST_SLOTS:
        raise ValueError(f"slots_per_rank = {slots}: more than {MOST_SLOTS} slots in all")
    if ep * slots > MOST_GROUP_SLOTS:
        raise ValueError(f"slots_per_rank = {slots}: more than {MOST_GROUP_SLOTS} slots in an EP group's layer")
    table_GP = np.full((ep, slots), EMPTY, np.int32)
    for rank, part in enumerate(np.array_split(np.arange(experts), ep)):
        table_GP[rank, : len(part)] = part
    return np.broadcast_to(table_GP, (groups, layers, ep, slots)).copy()


def check_filled(
    slots_DLGP: npt.NDArray[np.int32],
    experts: int,
    slots_per_rank: tuple[int, ...] | None,
    *,
    file: str | Path | None = None,
) -> None:
    """Every expert at least once per layer and EP group, no slot beyond what a rank has.

    Raises
    ------
    MoecastError
        Names the first layer and expert or rank that breaks the rule.
    """
    for group, layer in np.ndindex(*slots_DLGP.shape[:2]):
        missing = np.setdiff1d(np.arange(experts), slots_DLGP[group, layer])
        if len(missing):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            rule = f"layer {layer} of EP group {group} misses expert {missing[0]}{more}; every expert needs a slot"
            raise MoecastError(rule, file=file, field="slots")
    for rank, count in enumerate(slots_per_rank or ()):
        if (slots_DLGP[:, :, rank, count:] != EMPTY).any():
            rule = f"rank {rank} holds more experts than its {count} slots"
            raise MoecastError(rule, file=file, field="slots_per_rank")
