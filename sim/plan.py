"""The Plan: which expert stands in which slot of which rank, and how the ranks are laid out.

Axes: D EP group, L MoE layer, G rank inside an EP group, P slot of a rank, E expert.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.files import read_text, write_text

SCHEMA = 1
EMPTY = -1

DispatchMode = Literal["per_choice", "per_rank", "per_domain", "nccl", "stay"]
ReplicaRule = Literal["round_robin", "nearest", "weights"]

DISPATCH_MODES: tuple[str, ...] = get_args(DispatchMode)
REPLICA_RULES: tuple[str, ...] = get_args(ReplicaRule)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeBy:
    """Where a plan comes from; null where it is not known (a file from an engine)."""

    solver: str
    seed: int | None = None
    trace_hash: str | None = None
    trace_part: str | None = None
    objective_s: float | None = None
    bound_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A placement and a layout: the question that `simulate`, `place` and `validate` share.

    Ranks are numbered EP group by EP group: rank r is member ``r % ep`` of group ``r // ep``.

    Parameters
    ----------
    experts, choices, layer_ids
        E, K and the model's own numbers of its MoE layers (their count is L).
    slots_DLGP
        int32 [groups, L, ep, P]: the expert in each slot, −1 where empty.
    gpu_of_rank
        The GPU of each rank.
    slots_per_rank
        How many of the P slots each member of an EP group really has; None: all have P.
    replica_weights_DLGP
        Share of its expert's choices that each slot takes, for rule ``weights``.
    """

    experts: int
    choices: int
    layer_ids: tuple[int, ...]
    slots_DLGP: npt.NDArray[np.int32]
    gpu_of_rank: tuple[int, ...]
    slots_per_rank: tuple[int, ...] | None = None
    tp: int = 1
    pp: int = 1
    dp: int = 0  # 0: derived, ranks ÷ (tp · cp · pp)
    cp: int = 1
    etp: int = 1
    stage_of_layer: tuple[int, ...] | None = None
    replica_rule: ReplicaRule = "round_robin"
    replica_weights_DLGP: npt.NDArray[np.float64] | None = None
    dispatch: DispatchMode | None = None  # None: the phase's default
    dispatch_type: str | None = None
    combine_type: str | None = None
    schedule: str = "sequential"
    microbatches: int = 1
    made_by: MadeBy = field(default_factory=lambda: MadeBy(solver="unknown"))

    def __post_init__(self) -> None:
        """Check shapes and ranges; `check_legal` checks the placement itself."""
        if self.slots_DLGP.ndim != 4:
            raise ValueError(f"slots_DLGP has {self.slots_DLGP.ndim} axes, not 4 (groups, layers, ranks, slots)")
        if self.slots_DLGP.shape[1] != len(self.layer_ids):
            raise ValueError(f"slots_DLGP has {self.slots_DLGP.shape[1]} layers, layer_ids {len(self.layer_ids)}")
        if self.dp == 0:
            object.__setattr__(self, "dp", self.ranks // (self.tp * self.cp * self.pp))
        if len(self.gpu_of_rank) != self.ranks:
            raise ValueError(f"gpu_of_rank names {len(self.gpu_of_rank)} ranks, the layout has {self.ranks}")
        _among("replica_rule", self.replica_rule, REPLICA_RULES)
        if self.dispatch is not None:
            _among("dispatch", self.dispatch, DISPATCH_MODES)
        self.slots_DLGP.setflags(write=False)

    @property
    def layers(self) -> int:
        """L: how many MoE layers."""
        return len(self.layer_ids)

    @property
    def groups(self) -> int:
        """How many EP groups."""
        return int(self.slots_DLGP.shape[0])

    @property
    def ep(self) -> int:
        """Ranks in an EP group."""
        return int(self.slots_DLGP.shape[2])

    @property
    def ranks(self) -> int:
        """Ranks of the job."""
        return self.groups * self.ep * self.etp * self.pp

    @property
    def max_slots(self) -> int:
        """P: slots of the rank that has most."""
        return int(self.slots_DLGP.shape[3])

    @classmethod
    def contiguous(
        cls,
        *,
        layers: int,
        experts: int,
        choices: int,
        ep: int,
        groups: int = 1,
        slots_per_rank: int | None = None,
        layer_ids: tuple[int, ...] | None = None,
    ) -> Plan:
        """Experts in order, ⌈E / ep⌉ to a rank, spare slots empty: what engines do by default.

        Raises
        ------
        ValueError
            The slots cannot hold every expert.
        """
        per_rank = -(-experts // ep)
        slots = per_rank if slots_per_rank is None else slots_per_rank
        if slots < per_rank:
            raise ValueError(f"{ep} ranks × {slots} slots cannot hold {experts} experts: need {per_rank} slots a rank")
        table_GP = np.full((ep, slots), EMPTY, np.int32)
        share = [len(part) for part in np.array_split(np.arange(experts), ep)]
        first = 0
        for rank, count in enumerate(share):
            table_GP[rank, :count] = np.arange(first, first + count)
            first += count
        return cls(
            experts=experts,
            choices=choices,
            layer_ids=tuple(range(layers)) if layer_ids is None else layer_ids,
            slots_DLGP=np.broadcast_to(table_GP, (groups, layers, ep, slots)).copy(),
            gpu_of_rank=tuple(range(groups * ep)),
            made_by=MadeBy(solver="contiguous"),
        )

    def with_(self, **changes: Any) -> Plan:
        """Copy with some fields replaced."""
        return replace(self, **changes)

    def check_legal(self, *, file: str | Path | None = None) -> None:
        """Every expert at least once per layer and EP group, ids in range, no slot beyond what a rank has.

        Raises
        ------
        MoecastError
            Names the first layer and expert or rank that breaks the rule.
        """
        slots = self.slots_DLGP
        wrong = np.argwhere((slots < EMPTY) | (slots >= self.experts))
        if len(wrong):
            group, layer, rank, slot = (int(i) for i in wrong[0])
            place = f"slots[group {group}][layer {layer}][rank {rank}][slot {slot}]"
            raise MoecastError(
                f"expert ids run from 0 to {self.experts - 1} (−1: empty)",
                file=file, field=place, value=int(slots[group, layer, rank, slot]),
            )  # fmt: skip
        for group, layer in np.ndindex(self.groups, self.layers):
            present = np.unique(slots[group, layer])
            missing = np.setdiff1d(np.arange(self.experts), present)
            if len(missing):
                raise MoecastError(
                    f"layer {layer} of EP group {group} misses expert {missing[0]}"
                    + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
                    + "; every expert needs a slot",
                    file=file, field="slots",
                )  # fmt: skip
        if self.slots_per_rank is not None:
            for rank, count in enumerate(self.slots_per_rank):
                if (slots[:, :, rank, count:] != EMPTY).any():
                    raise MoecastError(
                        f"rank {rank} holds more experts than its {count} slots", file=file, field="slots_per_rank"
                    )

    def wasted_slots(self) -> int:
        """Slots that repeat an expert their own rank already holds, over all groups and layers."""
        ordered = np.sort(self.slots_DLGP, axis=-1)
        return int(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != EMPTY)).sum())

    def replicas_DLE(self) -> npt.NDArray[np.int64]:
        """How many slots hold each expert: int64 [groups, L, E]."""
        counts = np.zeros((self.groups, self.layers, self.experts), np.int64)
        for group, layer in np.ndindex(self.groups, self.layers):
            held = self.slots_DLGP[group, layer]
            counts[group, layer] = np.bincount(held[held != EMPTY], minlength=self.experts)
        return counts

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {
            "schema": SCHEMA,
            "layers": self.layers,
            "experts": self.experts,
            "choices": self.choices,
            "layer_ids": list(self.layer_ids),
            "tp": self.tp, "pp": self.pp, "dp": self.dp, "cp": self.cp, "ep": self.ep, "etp": self.etp,
            "groups": self.groups,
            "stage_of_layer": None if self.stage_of_layer is None else list(self.stage_of_layer),
            "gpu_of_rank": list(self.gpu_of_rank),
            "slots_per_rank": None if self.slots_per_rank is None else list(self.slots_per_rank),
            "slots": self.slots_DLGP.tolist(),
            "replica_rule": self.replica_rule,
            "replica_weights": None if self.replica_weights_DLGP is None else self.replica_weights_DLGP.tolist(),
            "dispatch": self.dispatch,
            "dispatch_type": self.dispatch_type,
            "combine_type": self.combine_type,
            "schedule": self.schedule,
            "microbatches": self.microbatches,
            "made_by": {name: getattr(self.made_by, name) for name in MadeBy.__dataclass_fields__},
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Any, *, file: str | Path | None = None) -> Plan:
        """Read what `to_json` wrote.

        Raises
        ------
        MoecastError
            A field is missing, unknown, of the wrong type or out of range; or the plan is not legal.
        """
        if not isinstance(value, dict) or "slots" not in value:
            raise MoecastError("not a moecast plan (no field 'slots')", file=file)
        if value.get("schema") != SCHEMA:
            raise MoecastError(
                f"this moecast reads plan schema {SCHEMA}", file=file, field="schema", value=value.get("schema")
            )
        known = {*_PLAIN_FIELDS, *_OTHER_FIELDS}
        for name in value:
            if name not in known:
                raise MoecastError("unknown field", file=file, field=name)
        try:
            plan = cls(
                layer_ids=tuple(int(i) for i in value["layer_ids"]),
                slots_DLGP=_int_array(value["slots"]),
                gpu_of_rank=tuple(int(i) for i in value["gpu_of_rank"]),
                slots_per_rank=_optional_ints(value.get("slots_per_rank")),
                stage_of_layer=_optional_ints(value.get("stage_of_layer")),
                replica_weights_DLGP=None
                if value.get("replica_weights") is None
                else np.asarray(value["replica_weights"], np.float64),
                made_by=MadeBy(**value.get("made_by", {"solver": "unknown"})),
                **{name: value[name] for name in _PLAIN_FIELDS if name in value},
            )
        except KeyError as error:
            raise MoecastError("missing", file=file, field=str(error.args[0])) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise MoecastError(str(error), file=file, field="plan") from error
        plan.check_legal(file=file)
        return plan


_PLAIN_FIELDS = (
    "experts", "choices", "tp", "pp", "dp", "cp", "etp", "replica_rule", "dispatch", "dispatch_type", "combine_type",
    "schedule", "microbatches",
)  # fmt: skip
_OTHER_FIELDS = (
    "schema", "layers", "ep", "groups", "layer_ids", "gpu_of_rank", "slots_per_rank", "stage_of_layer", "slots",
    "replica_weights", "made_by",
)  # fmt: skip


def write_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan as JSON, whole or not at all."""
    write_text(path, json.dumps(plan.to_json(), separators=(",", ":"), allow_nan=False) + "\n")


def read_plan(path: str | Path) -> Plan:
    """Read a moecast plan; `moecast.placement.engines.read_any` also takes engines' files.

    Raises
    ------
    MoecastError
        The file is missing, not JSON, or not a legal plan.
    """
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise MoecastError(f"not JSON (line {error.lineno}: {error.msg})", file=path) from error
    return Plan.from_json(value, file=path)


def _among(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: one of {', '.join(allowed)}")


def _int_array(value: Any) -> npt.NDArray[np.int32]:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise ValueError("slots: whole numbers in a list of equal lengths [group][layer][rank][slot]")
    return array.astype(np.int32)


def _optional_ints(value: Any) -> tuple[int, ...] | None:
    return None if value is None else tuple(int(i) for i in value)
