"""vLLM-Ascend's expert map (``expert_map_path``).

``moe_layer_count``, and a ``layer_list`` of ``layer_id``, ``device_count`` and a ``device_list`` of
``device_id`` and ``device_expert``: layers are counted over MoE layers from 0, devices are the
ranks of an EP group.
Source: vllm-project/vllm-ascend, vllm_ascend/eplb (the file it records, and reads).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecast.errors import MoecastError
from moecast.placement.engines.slots import flat_slots_LX, plan_of_rows
from moecast.sim.plan import Plan

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import ReplicaRule

_FIELD = "layer_list"


class VLLMAscend:
    """``moe_layer_count`` and ``layer_list``."""

    name = "vllm-ascend"
    suffix = ".vllm-ascend.json"
    field = _FIELD
    # each rank keeps one replica for good: eplb/core/eplb_utils.py
    replica_rule: ReplicaRule = "by_rank"

    def recognises(self, value: Any) -> bool:
        """Whether it holds the list of layers."""
        return isinstance(value, Mapping) and _FIELD in value

    def dump(self, plan: Plan, model: ModelShape) -> str:  # noqa: ARG002  the file knows only MoE layers
        """Every layer with every device."""
        layers = []
        for layer, row in enumerate(flat_slots_LX(plan, "vLLM-Ascend").reshape(plan.layers, plan.ep, -1).tolist()):
            devices = [{"device_id": device, "device_expert": experts} for device, experts in enumerate(row)]
            layers.append({"layer_id": layer, "device_count": plan.ep, "device_list": devices})
        return json.dumps({"moe_layer_count": plan.layers, _FIELD: layers}, separators=(",", ":")) + "\n"

    def load(self, value: Any, model: ModelShape, ep: int, *, file: Path) -> Plan:
        """Layers and devices may come in any order; each must come once."""
        layers = _by_id(value[_FIELD], "layer_id", model.layers, field=_FIELD, file=file)
        if value.get("moe_layer_count", model.layers) != model.layers:
            rule = f"{model.name} has {model.layers} MoE layers"
            raise MoecastError(rule, file=file, field="moe_layer_count", value=value["moe_layer_count"])
        rows = []
        for number, layer in enumerate(layers):
            field = f"{_FIELD}[{number}].device_list"
            devices = _by_id(layer.get("device_list"), "device_id", ep, field=field, file=file)
            held = [device["device_expert"] for device in devices if isinstance(device.get("device_expert"), list)]
            if len(held) != ep or len({len(experts) for experts in held}) > 1:
                rule = "a list device_expert for each device, all equally long"
                raise MoecastError(rule, file=file, field=field)
            rows.append([expert for experts in held for expert in experts])
        return plan_of_rows(rows, model, ep, engine="vLLM-Ascend", file=file).with_(replica_rule=self.replica_rule)

    def launch(self, file: str, plan: Plan) -> str:
        """Start vLLM's server with the plugin's options."""
        spare = plan.ep * plan.max_slots - plan.experts
        config = json.dumps({"eplb_config": {"expert_map_path": file, "num_redundant_experts": spare}})
        return f"vllm serve MODEL --enable-expert-parallel --additional-config '{config}'"


def _by_id(items: Any, key: str, count: int, *, field: str, file: Path) -> list[Mapping[str, Any]]:
    """Items in the order of their id, which must be 0 to count - 1."""
    if not isinstance(items, list) or len(items) != count:
        found = len(items) if isinstance(items, list) else type(items).__name__
        hint = " (the ranks of an EP group: set --ep)" if key == "device_id" else ""
        raise MoecastError(f"expected a list of {count}{hint}", file=file, field=field, value=found)
    by_id = {item.get(key): item for item in items if isinstance(item, Mapping) and type(item.get(key)) is int}
    if set(by_id) != set(range(count)):
        raise MoecastError(f"each of 0 to {count - 1} once", file=file, field=f"{field}.{key}")
    return [by_id[number] for number in range(count)]
