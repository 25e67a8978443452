"""What DeepSeek's `eplb.rebalance_experts` returns, as JSON: Megatron-style code and forks of EPLB take these tensors.

``phy2log`` [layers, slots]: the expert of each slot, rank after rank. ``log2phy`` [layers, experts,
most replicas]: the slots of each expert, -1 behind the last. ``logcnt`` [layers, experts]: how
many. Layers are MoE layers from 0. Source: github.com/deepseek-ai/EPLB, README.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.placement.engines.slots import flat_slots_LX, plan_of_rows
from moecast.sim.plan import Plan

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import ReplicaRule

_FIELD = "phy2log"


class EplbTensors:
    """``phy2log``, ``log2phy`` and ``logcnt``."""

    name = "eplb"
    suffix = ".eplb.json"
    field = _FIELD
    replica_rule: ReplicaRule = "round_robin"

    def recognises(self, value: Any) -> bool:
        """Whether it holds the expert of each slot."""
        return isinstance(value, Mapping) and _FIELD in value

    def dump(self, plan: Plan, model: ModelShape) -> str:  # noqa: ARG002  the tensors know only MoE layers
        """All three tensors."""
        slots_LX = flat_slots_LX(plan, "EPLB")
        count_LE = np.stack([np.bincount(slots_X, minlength=plan.experts) for slots_X in slots_LX])
        value = {
            _FIELD: slots_LX.tolist(),
            "log2phy": _slots_of_experts(slots_LX, count_LE).tolist(),
            "logcnt": count_LE.tolist(),
        }
        return json.dumps(value, separators=(",", ":")) + "\n"

    def load(self, value: Any, model: ModelShape, ep: int, *, file: Path) -> Plan:
        """The slots say all; where the other two stand beside them, they must say the same."""
        rows = value[_FIELD]
        if not isinstance(rows, list) or len(rows) != model.layers:
            rule = f"one list for each of the {model.layers} MoE layers of {model.name}"
            raise MoecastError(rule, file=file, field=_FIELD)
        plan = plan_of_rows(rows, model, ep, engine="EPLB", file=file)
        slots_LX = plan.slots_DLGP[0].reshape(plan.layers, -1)
        count_LE = np.stack([np.bincount(slots_X, minlength=plan.experts) for slots_X in slots_LX])
        wanted = {"logcnt": count_LE, "log2phy": _slots_of_experts(slots_LX, count_LE)}
        for field, table in wanted.items():
            if field in value and value[field] != table.tolist():
                raise MoecastError(f"does not fit {_FIELD}", file=file, field=field)
        return plan

    def launch(self, file: str, plan: Plan) -> str:  # noqa: ARG002
        """How the file is used: as the three tensors that `rebalance_experts` returns."""
        return f"phy2log, log2phy, logcnt = map(torch.tensor, json.load(open({file!r})).values())"


def _slots_of_experts(slots_LX: npt.NDArray[np.int32], count_LE: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    slots_LEX = np.full((*count_LE.shape, int(count_LE.max())), -1)
    for slots_EX, slots_X in zip(slots_LEX, slots_LX, strict=True):
        for expert, held_X in enumerate(slots_EX):
            found = np.flatnonzero(slots_X == expert)
            held_X[: len(found)] = found
    return slots_LEX
