"""ExFlow's table of experts: ``Expert,Node``, a line for each.

Experts are numbered through the MoE layers (layer · E + expert), a node is the rank, and each
expert stands on one. The order of a rank's experts is not in it: they are read back in order.
Source: github.com/YJHMITWEB/ExFlow, solve_affinity.py (the file it writes) and README.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moecast.errors import MoecastError
from moecast.placement.engines.slots import flat_slots_LX, plan_of_rows
from moecast.sim.plan import Plan

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import ReplicaRule

HEADER = "Expert,Node"
MOST_DIGITS = 9


class ExflowTable:
    """``Expert,Node``."""

    name = "exflow"
    suffix = ".exflow.csv"
    field = HEADER
    replica_rule: ReplicaRule = "round_robin"

    def recognises(self, value: Any) -> bool:
        """Whether it is a table with this header (`moecast.placement.engines.files` reads it)."""
        return isinstance(value, Mapping) and HEADER in value

    def dump(self, plan: Plan, model: ModelShape) -> str:  # noqa: ARG002  the table knows only MoE layers
        """Every expert of every layer, in order."""
        slots_LX = flat_slots_LX(plan, "ExFlow")
        if slots_LX.shape[1] != plan.experts:
            spare = slots_LX.shape[1] - plan.experts
            rule = f"ExFlow's table has each expert once, and the plan has {spare} replicas: place without spare slots"
            raise MoecastError(rule, field="slots")
        rank_X = np.repeat(np.arange(len(plan.slots_DLGP[0, 0])), plan.max_slots)
        lines = [HEADER]
        for layer, slots_X in enumerate(slots_LX):
            rank_E = np.empty(plan.experts, np.int64)
            rank_E[slots_X] = rank_X
            lines += [f"{layer * plan.experts + expert},{rank}" for expert, rank in enumerate(rank_E)]
        return "\n".join(lines) + "\n"

    def load(self, value: Any, model: ModelShape, ep: int, *, file: Path) -> Plan:
        """Experts may come in any order; each must come once, and equally many on each rank of a layer."""
        rank_of: dict[int, int] = {}
        for number, line in enumerate(value[HEADER], 2):
            expert, rank = (part.strip() for part in line.partition(",")[::2])
            whole = all(part.isdecimal() and len(part) <= MOST_DIGITS for part in (expert, rank))
            if not whole or int(expert) in rank_of or int(rank) >= ep:
                rule = f"a number of an expert, new each time, and one of a node, below {ep}"
                raise MoecastError(rule, file=file, field=f"line {number}", value=line)
            rank_of[int(expert)] = int(rank)
        if set(rank_of) != set(range(model.layers * model.experts)):
            rule = f"each of the {model.layers} × {model.experts} experts of {model.name} once, numbered from 0"
            raise MoecastError(rule, file=file, field="Expert")
        rows = []
        for layer in range(model.layers):
            of_layer = [rank_of[layer * model.experts + expert] for expert in range(model.experts)]
            held = np.bincount(of_layer, minlength=ep)
            if len(held) != ep or np.ptp(held):
                rule = f"equally many experts on each of {ep} ranks (set --ep): layer {layer} has {held.tolist()}"
                raise MoecastError(rule, file=file, field="Node")
            rows.append([int(expert) for expert in np.argsort(of_layer, kind="stable")])
        return plan_of_rows(rows, model, ep, engine="ExFlow", file=file)

    def launch(self, file: str, plan: Plan) -> str:  # noqa: ARG002
        """How the file is used: the GPU on which each expert is loaded."""
        return f"gpu_of_expert = {{int(r['Expert']): int(r['Node']) for r in csv.DictReader(open({file!r}))}}"
