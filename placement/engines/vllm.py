"""vLLM's initial expert map (``eplb_config.initial_expert_map_path``).

The logical expert of each physical slot, rank after rank: one list for each MoE layer, or one list
for all of them. Source: vllm-project/vllm, pull request 49572.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecast.errors import MoecastError
from moecast.placement.engines.slots import flat_slots_LX, plan_of_rows
from moecast.sim.plan import Plan

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import ReplicaRule


class VLLM:
    """``[[…], …]``, or ``[…]`` for all layers alike."""

    name = "vllm"
    suffix = ".vllm.json"
    field = ""
    # It takes replica (place of the choice among the batch's T x K) mod r, which spreads evenly
    # without regard to where replicas stand (vllm-project/vllm, fused_moe/router/base_router.py):
    # so does round robin, choice by choice.
    replica_rule: ReplicaRule = "round_robin"

    def recognises(self, value: Any) -> bool:
        """Whether it is a list: no other engine's file is."""
        return isinstance(value, list)

    def dump(self, plan: Plan, model: ModelShape) -> str:  # noqa: ARG002  the file knows only MoE layers
        """One list for each MoE layer."""
        return json.dumps(flat_slots_LX(plan, "vLLM").tolist(), separators=(",", ":")) + "\n"

    def load(self, value: Any, model: ModelShape, ep: int, *, file: Path) -> Plan:
        """A flat list stands for every MoE layer."""
        rows = value
        if value and not any(isinstance(row, list) for row in value):
            rows = [value] * model.layers
        if len(rows) != model.layers:
            rule = f"one list for all MoE layers of {model.name}, or one for each of the {model.layers}"
            raise MoecastError(rule, file=file, field="lists", value=len(rows))
        return plan_of_rows(rows, model, ep, engine="vLLM", file=file).with_(replica_rule=self.replica_rule)

    def launch(self, file: str, plan: Plan) -> str:
        """Start vLLM's server, which keeps the map until it rebalances by itself."""
        spare = plan.ep * plan.max_slots - plan.experts
        config = json.dumps({"num_redundant_experts": spare, "initial_expert_map_path": file})
        return f"vllm serve MODEL --enable-expert-parallel --enable-eplb --eplb-config '{config}'"
