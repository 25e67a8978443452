"""What engines' files have in common: one flat row of slots per layer, rank after rank.

Axes: D EP group, L MoE layer, G rank of a group, P slot of a rank, X slot of a group (rank-major).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.made_by import MadeBy
from moecast.sim.plan import Plan
from moecast.sim.slots import EMPTY

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape

MAX_SLOTS = 1 << 16  # of one layer: far more than any job has


def flat_slots_LX(plan: Plan, engine: str) -> npt.NDArray[np.int32]:
    """The slots of the plan's one EP group, or of all its groups if they are the same, rank-major.

    Raises
    ------
    MoecastError
        Slots are empty, groups differ, or ranks have different numbers of slots.
    """
    if plan.slots_per_rank is not None and len(set(plan.slots_per_rank)) > 1:
        rule = f"{engine} wants the same number of slots on every rank"
        raise MoecastError(rule, field="slots_per_rank")
    if (plan.slots_DLGP != plan.slots_DLGP[:1]).any():
        rule = f"{engine} holds one placement, and the plan's EP groups differ"
        raise MoecastError(rule, field="slots")
    empty = int((plan.slots_DLGP[0] == EMPTY).sum())
    if empty:
        raise MoecastError(
            f"{engine} has no empty slots, and the plan leaves {empty}: place with a solver that fills them, "
            "or with fewer slots",
            field="slots",
        )
    slots_LX: npt.NDArray[np.int32] = plan.slots_DLGP[0].reshape(plan.layers, -1)
    return slots_LX


def plan_of_rows(rows: Sequence[Any], model: ModelShape, ep: int, *, engine: str, file: Path) -> Plan:
    """The plan of one row of slots per MoE layer.

    Raises
    ------
    MoecastError
        Rows of different lengths or not of whole numbers, or slots that do not divide among the
        ranks.
    """
    for layer, row in zip(model.moe_layer_ids, rows, strict=True):
        if not isinstance(row, list) or not all(type(expert) is int for expert in row):
            rule = "expected a list of whole numbers"
            raise MoecastError(rule, file=file, field=f"layer {layer}")
        if len(row) != len(rows[0]) or not 0 < len(row) <= MAX_SLOTS:
            raise MoecastError(
                f"{len(row)} slots, the first layer has {len(rows[0])} (1 to {MAX_SLOTS})",
                file=file,
                field=f"layer {layer}",
            )
        if not all(0 <= expert < model.experts for expert in row):
            wrong = next(expert for expert in row if not 0 <= expert < model.experts)
            raise MoecastError(
                f"{model.name} has experts 0 to {model.experts - 1}", file=file, field=f"layer {layer}", value=wrong
            )
    slots = len(rows[0])
    if slots % ep:
        rule = f"does not divide among {ep} ranks (set --ep)"
        raise MoecastError(rule, file=file, field="slots", value=slots)
    table_LGP = np.array(rows, np.int32).reshape(model.layers, ep, slots // ep)
    return Plan(
        experts=model.experts,
        choices=model.choices,
        layer_ids=model.moe_layer_ids,
        slots_DLGP=table_LGP[None],
        gpu_of_rank=tuple(range(ep)),
        made_by=MadeBy(solver=f"a file of {engine}"),
    )
