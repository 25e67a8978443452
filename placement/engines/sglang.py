"""SGLang's expert location file (``--init-expert-location``).

One row for every *hidden* layer, dense ones included: the engine sizes the map by
`num_hidden_layers` and refuses any other number of rows. Slot x of a row is physical expert x, and
rank r holds slots r·P to (r+1)·P−1.
Source: sgl-project/sglang, python/sglang/srt/eplb/expert_location.py.
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

_FIELD = "physical_to_logical_map"


class SGLang:
    """``{"physical_to_logical_map": [[…], …]}``."""

    name = "sglang"
    suffix = ".sglang.json"
    field = _FIELD
    # --ep-dispatch-algorithm static, its default with a map of one's own
    replica_rule: ReplicaRule = "fixed"

    def recognises(self, value: Any) -> bool:
        """Whether it holds the map."""
        return isinstance(value, Mapping) and _FIELD in value

    def dump(self, plan: Plan, model: ModelShape) -> str:
        """Dense layers get the trivial map, slot p holding expert p mod E: nothing reads it."""
        slots_LX = flat_slots_LX(plan, "SGLang")
        trivial = [slot % plan.experts for slot in range(slots_LX.shape[1])]
        rows = [trivial] * model.n_layers
        for layer, row in zip(plan.layer_ids, slots_LX.tolist(), strict=True):
            rows[layer] = row
        return json.dumps({_FIELD: rows}, separators=(",", ":")) + "\n"

    def load(self, value: Any, model: ModelShape, ep: int, *, file: Path) -> Plan:
        """Rows of dense layers are passed over."""
        rows = value[_FIELD]
        if not isinstance(rows, list) or len(rows) != model.n_layers:
            found = len(rows) if isinstance(rows, list) else rows
            rule = f"a row for each of the {model.n_layers} hidden layers of {model.name}, dense ones included"
            raise MoecastError(rule, file=file, field=_FIELD, value=found)
        return plan_of_rows(
            [rows[layer] for layer in model.moe_layer_ids], model, ep, engine="SGLang", file=file
        ).with_(replica_rule=self.replica_rule)

    def launch(self, file: str, plan: Plan) -> str:
        """SGLang's server; how it picks among replicas stays ``static``, its default beside a map."""
        spare = plan.ep * plan.max_slots - plan.experts
        redundant = f" --ep-num-redundant-experts {spare}" if spare else ""
        return (
            f"python -m sglang.launch_server --model-path MODEL --tp-size {plan.ranks} --ep-size "
            f"{plan.ep}{redundant} --init-expert-location {file}"
        )
