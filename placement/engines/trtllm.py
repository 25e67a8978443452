"""TensorRT-LLM's MoE load balancer file (``moe_config.load_balancer``).

`initial_global_assignments` maps the id of each MoE layer to its slots, rank after rank;
`layer_updates_per_iter` is 0 for a placement that stays as it is.
Source: NVIDIA/TensorRT-LLM, examples/wide_ep (README and ep_load_balancer).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from moecast.errors import MoecastError
from moecast.placement.engines.slots import flat_slots_LX, plan_of_rows
from moecast.sim.plan import Plan

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import ReplicaRule

_FIELD = "initial_global_assignments"


class TensorRTLLM:
    """``num_slots``, ``initial_global_assignments`` and ``layer_updates_per_iter``."""

    name = "trtllm"
    suffix = ".trtllm.yaml"
    field = _FIELD
    replica_rule: ReplicaRule = "round_robin"

    def recognises(self, value: Any) -> bool:
        """Whether it holds the assignments."""
        return isinstance(value, Mapping) and _FIELD in value

    def dump(self, plan: Plan, model: ModelShape) -> str:  # noqa: ARG002  the file knows only MoE layers
        """A static placement: no updates."""
        slots_LX = flat_slots_LX(plan, "TensorRT-LLM")
        assignments = dict(zip(plan.layer_ids, slots_LX.tolist(), strict=True))
        value = {"num_slots": slots_LX.shape[1], _FIELD: assignments, "layer_updates_per_iter": 0}
        return str(yaml.safe_dump(value, default_flow_style=None, sort_keys=False, width=1 << 20))

    def load(self, value: Any, model: ModelShape, ep: int, *, file: Path) -> Plan:
        """The layers must be the model's MoE layers, and each row as long as `num_slots` says."""
        assignments = value[_FIELD]
        if not isinstance(assignments, Mapping):
            raise MoecastError("maps layer ids to lists of slots", file=file, field=_FIELD)
        rows = {str(layer): row for layer, row in assignments.items()}  # JSON has only text as keys
        wanted = [str(layer) for layer in model.moe_layer_ids]
        if set(rows) != set(wanted):
            wrong = sorted(set(rows) ^ set(wanted), key=lambda layer: (len(layer), layer))[0]
            raise MoecastError(
                f"one list for each MoE layer of {model.name}: {wanted[0]} to {wanted[-1]}",
                file=file,
                field=f"{_FIELD}[{wrong}]",
                value="missing" if wrong in wanted else "unknown",
            )
        plan = plan_of_rows([rows[layer] for layer in wanted], model, ep, engine="TensorRT-LLM", file=file)
        slots = plan.ep * plan.max_slots
        if value.get("num_slots") != slots:
            raise MoecastError(
                f"the lists have {slots} slots", file=file, field="num_slots", value=value.get("num_slots")
            )
        return plan

    def launch(self, file: str, plan: Plan) -> str:
        """TensorRT-LLM's server, with what its configuration must say."""
        options = f"--tp_size {plan.ranks} --ep_size {plan.ep} --config config.yaml"
        return f"trtllm-serve MODEL {options}  # config.yaml: moe_config: {{load_balancer: {file}}}"
