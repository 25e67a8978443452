"""The plan file: a strict model of its JSON, checked before any array is made.

Axes: D EP group, L MoE layer, G rank inside an EP group, P slot of a rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moecast.errors import MoecastError
from moecast.sim.layout import MOST_RANKS
from moecast.sim.made_by import MadeBy
from moecast.sim.slots import EMPTY, MOST_EXPERTS

SCHEMA = 2
FIRST_SCHEMA = 1
READ_SCHEMAS = (FIRST_SCHEMA, SCHEMA)

Degree = Annotated[int, Field(ge=1, le=MOST_RANKS)]
Number = Annotated[int, Field(ge=0, le=2**31 - 1)]
Slot = Annotated[int, Field(ge=EMPTY, le=MOST_EXPERTS)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _MadeBy(_Strict):
    solver: str
    seed: int | None = None
    trace_hash: str | None = None
    trace_part: str | None = None
    objective_s: Seconds | None = None
    bound_s: Seconds | None = None
    note: str = ""


class _PlanFile(_Strict):
    layers: Degree
    experts: Annotated[int, Field(ge=1, le=MOST_EXPERTS)]
    choices: Degree
    layer_ids: list[Number]
    tp: Degree = 1
    pp: Degree = 1
    dp: Degree | None = None
    cp: Degree = 1
    ep: Degree
    etp: Degree = 1
    groups: Degree
    virtual: Degree = 1
    folded: bool = False
    sequence_parallel: bool = True
    context_exchange: str = "ring"
    context_split: str = "zig-zag"
    stage_of_layer: list[Number] | None = None
    gpu_of_rank: list[Number]
    slots_per_rank: list[Number] | None = None
    slots: list[list[list[list[Slot]]]]
    replica_rule: str = "round_robin"
    replica_weights: list[list[list[list[Share]]]] | None = None
    dispatch: str | None = None
    dispatch_type: str | None = None
    combine_type: str | None = None
    schedule: str = "sequential"
    microbatches: Degree = 1
    made_by: _MadeBy = _MadeBy(solver="unknown")


_SAME = (
    "experts", "choices", "tp", "pp", "cp", "etp", "virtual", "folded", "sequence_parallel",
    "context_exchange", "context_split", "replica_rule", "dispatch", "dispatch_type", "combine_type", "schedule",
    "microbatches",
)  # fmt: skip

_ARRAYS = {"slots": "slots_DLGP", "replica_weights": "replica_weights_DLGP"}


def plan_fields(value: Any, *, file: str | Path | None = None) -> dict[str, Any]:
    """Read the fields of a Plan from its parsed JSON.

    Raises
    ------
    MoecastError
        Not a plan; a field that is missing, unknown, of the wrong type or out of range; sizes that
        contradict each other.
    """
    if not isinstance(value, Mapping) or "slots" not in value:
        raise MoecastError("not a moecast plan (no field 'slots')", file=file)
    schema = value.get("schema")
    if schema not in READ_SCHEMAS or isinstance(schema, bool):
        rule = f"this moecast reads plan schemas 1 and {SCHEMA}"
        raise MoecastError(rule, file=file, field="schema", value=schema)
    try:
        read = _PlanFile.model_validate({name: item for name, item in value.items() if name != "schema"})
    except ValidationError as error:
        raise _first_of(error, file) from error
    shape = (read.groups, read.layers, read.ep)
    slots = _table("slots", read.slots, shape, np.int32, file)
    weights = None
    if read.replica_weights is not None:
        weights = _table("replica_weights", read.replica_weights, shape, np.float64, file)
    return {
        **{name: getattr(read, name) for name in _SAME},
        "layer_ids": tuple(read.layer_ids),
        "slots_DLGP": slots,
        "gpu_of_rank": tuple(read.gpu_of_rank),
        "slots_per_rank": _tuple(read.slots_per_rank),
        "stage_of_layer": _stages(read) if schema == FIRST_SCHEMA else _tuple(read.stage_of_layer),
        "replica_weights_DLGP": weights,
        "dp": read.dp or 0,
        "made_by": MadeBy(**read.made_by.model_dump()),
    }


def plan_value(plan: object) -> dict[str, Any]:
    """The fields of a Plan as plain JSON values, which `plan_fields` reads."""
    fields = {name: _plain(getattr(plan, _ARRAYS.get(name, name))) for name in _PlanFile.model_fields}
    return {"schema": SCHEMA, **fields}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, MadeBy):
        return {name: getattr(value, name) for name in MadeBy.__dataclass_fields__}
    return list(value) if isinstance(value, tuple) else value


def _tuple(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def _stages(read: _PlanFile) -> tuple[int, ...] | None:
    """Stages of hidden layers from those of MoE layers, as schema 1 had them: a dense layer stands with the next."""
    stages = read.stage_of_layer
    if stages is None or read.pp == 1 or len(stages) != len(read.layer_ids):
        return _tuple(stages)
    return tuple(stages[np.searchsorted(read.layer_ids, layer)] for layer in range(read.layer_ids[-1] + 1))


def _table(name: str, rows: list[Any], shape: tuple[int, int, int], kind: type, file: str | Path | None) -> Any:
    """An array [D, L, G, P] of nested lists, whose sizes the file declares; P is that of the first rank."""
    wanted = zip(("groups", "layers", "ep"), shape, strict=True)
    level: list[Any] = [rows]
    for field, size in wanted:
        for part in level:
            if len(part) != size:
                raise MoecastError(f"{name} has {len(part)}", file=file, field=field, value=size)
        level = [inner for part in level for inner in part]
    slots = len(level[0])
    for part in level:
        if len(part) != slots or not slots:
            rule = "every rank has a list of the same length, at least one slot; -1 where there is none"
            raise MoecastError(rule, file=file, field=name, value=f"lists of {slots} and of {len(part)}")
    return np.array(rows, kind)


def _first_of(error: ValidationError, file: str | Path | None) -> MoecastError:
    first = error.errors(include_url=False)[0]
    place = first["loc"]
    field = str(place[0]) + "".join(f"[{part}]" for part in place[1:]) if place else None
    rule = {"missing": "missing", "extra_forbidden": "unknown field"}.get(first["type"])
    if rule is None and first.get("input") is None:
        rule = f"null: {_lowered(first['msg'])}"
    if rule is not None:
        return MoecastError(rule, file=file, field=field)
    return MoecastError(_lowered(first["msg"]), file=file, field=field, value=first.get("input"))


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
