"""The Plan: which expert stands in which slot of which rank, and how the ranks are laid out.

Axes: D EP group, L MoE layer, G rank inside an EP group, P slot of a rank, E expert.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.files import read_json, write_text
from moecast.sim import element_types
from moecast.sim.context.split import EXCHANGES, SPLITS
from moecast.sim.layout import MOST_RANKS, Layout
from moecast.sim.made_by import MadeBy
from moecast.sim.plan_json import plan_fields, plan_value
from moecast.sim.plan_tables import check_filled, contiguous_slots, slot_table, weight_table
from moecast.sim.slots import EMPTY, MOST_EXPERTS
from moecast.sim.whole import short, whole, whole_list

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.topology import Cluster

DispatchMode = Literal["per_choice", "per_rank", "per_domain", "nccl", "stay", "all_gather"]
ReplicaRule = Literal["round_robin", "nearest", "fixed", "by_rank", "weights", "lplb"]

DISPATCH_MODES: tuple[str, ...] = get_args(DispatchMode)
REPLICA_RULES: tuple[str, ...] = get_args(ReplicaRule)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A placement and a layout: the question that `simulate`, `place` and `validate` share.

    Its `layout` says who is which rank.

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
    sequence_parallel
        With `tp`: each rank keeps the hidden vectors of its part of the tokens (reduce-scatter and
        all-gather around attention), instead of those of all that it shares (all-reduce).
    context_exchange, context_split
        With `cp`: how all ranks that share a sequence see all of its keys, and how sequences are
        cut over them (`moecast.sim.context`).
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
    virtual: int = 1
    folded: bool = False
    sequence_parallel: bool = True
    context_exchange: str = "ring"
    context_split: str = "zig-zag"
    stage_of_layer: tuple[int, ...] | None = None  # of each hidden layer
    replica_rule: ReplicaRule = "round_robin"
    replica_weights_DLGP: npt.NDArray[np.float64] | None = None
    dispatch: DispatchMode | None = None  # None: the phase's default
    dispatch_type: str | None = None
    combine_type: str | None = None
    schedule: str = "sequential"
    microbatches: int = 1
    made_by: MadeBy = field(default_factory=lambda: MadeBy(solver="unknown"))
    layout: Layout = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check everything that loops rely on; `check_legal` checks the placement itself.

        Raises
        ------
        ValueError
            Names the field, the value and the rule.
        """
        check_sizes(self)
        object.__setattr__(self, "layer_ids", whole_list("layer_ids", self.layer_ids, rising=True, least_long=0))
        object.__setattr__(self, "slots_DLGP", slot_table(self.slots_DLGP, len(self.layer_ids), self.experts))
        layout = Layout(
            ep=self.ep,
            groups=self.groups,
            gpu_of_rank=self.gpu_of_rank,
            stage_of_layer=self.stage_of_layer,
            folded=self.folded,
            **{name: getattr(self, name) for name in ("tp", "pp", "dp", "cp", "etp", "virtual")},
        )
        for name in ("dp", "gpu_of_rank", "stage_of_layer"):
            object.__setattr__(self, name, getattr(layout, name))
        object.__setattr__(self, "layout", layout)
        self._check_optional()
        self._check_names()

    def _check_optional(self) -> None:
        if self.slots_per_rank is not None:
            counts = whole_list("slots_per_rank", self.slots_per_rank)
            if len(counts) != self.ep or max(counts) > self.max_slots:
                raise ValueError(f"slots_per_rank = {short(counts)}: {self.ep} numbers of at most {self.max_slots}")
            object.__setattr__(self, "slots_per_rank", counts)
        if self.replica_weights_DLGP is not None:
            weights = weight_table(self.replica_weights_DLGP, self.slots_DLGP)
            object.__setattr__(self, "replica_weights_DLGP", weights)
        elif self.replica_rule == "weights":
            raise ValueError("replica_weights = None: rule weights needs them")

    def _check_names(self) -> None:
        _among("replica_rule", self.replica_rule, REPLICA_RULES)
        _among("context_exchange", self.context_exchange, EXCHANGES)
        _among("context_split", self.context_split, SPLITS)
        if self.dispatch is not None:
            _among("dispatch", self.dispatch, DISPATCH_MODES)
        for field_ in ("dispatch_type", "combine_type"):
            if getattr(self, field_) is not None:
                _among(field_, getattr(self, field_), element_types.ELEMENT_TYPES)
        if not isinstance(self.sequence_parallel, bool):
            raise ValueError(f"sequence_parallel = {self.sequence_parallel!r}: true or false")
        if not isinstance(self.schedule, str):
            raise ValueError(f"schedule = {self.schedule!r}: must be the name of a schedule")

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
        return self.layout.ranks

    @property
    def max_slots(self) -> int:
        """P: slots of the rank that has most."""
        return int(self.slots_DLGP.shape[3])

    @classmethod
    def contiguous(
        cls,
        model: ModelShape | None = None,
        cluster: Cluster | None = None,
        *,
        layers: int | None = None,
        experts: int | None = None,
        choices: int | None = None,
        ep: int | None = None,
        groups: int | None = None,
        slots_per_rank: int | None = None,
        layer_ids: tuple[int, ...] | None = None,
    ) -> Plan:
        """Experts in order, ⌈E / ep⌉ to a rank, spare slots empty: what engines do by default.

        Parameters
        ----------
        model
            Whose L, E, K and layer ids; or give `layers`, `experts` and `choices`.
        cluster
            Whose GPUs, all of them, are laid out in EP groups of `ep` (None: one group); or give
            `ep` and `groups`.
        slots_per_rank
            None: as few as hold the experts.

        Raises
        ------
        ValueError
            Sizes that are missing, GPUs that do not divide into groups, or slots that cannot hold
            every expert.
        """
        if model is not None:
            layers, experts, choices = model.layers, model.experts, model.choices
            layer_ids = model.moe_layer_ids if layer_ids is None else layer_ids
        if cluster is not None:
            ep = cluster.n_gpus if ep is None else ep
            if groups is None and (ep < 1 or cluster.n_gpus % ep):
                raise ValueError(f"ep = {ep}: does not divide the cluster's {cluster.n_gpus} GPUs into EP groups")
            groups = cluster.n_gpus // ep if groups is None else groups
        if layers is None or experts is None or choices is None or ep is None:
            raise ValueError("give a model (or layers, experts and choices) and a cluster (or ep)")
        for name, value in (("layers", layers), ("experts", experts), ("choices", choices), ("ep", ep)):
            whole(name, value)
        groups = whole("groups", 1 if groups is None else groups)
        slots_DLGP = contiguous_slots((groups, layers, ep), experts, slots_per_rank)
        return cls(
            experts=experts,
            choices=choices,
            layer_ids=tuple(range(layers)) if layer_ids is None else layer_ids,
            slots_DLGP=slots_DLGP,
            gpu_of_rank=tuple(range(groups * ep)),
            made_by=MadeBy(solver="contiguous"),
        )

    def with_(self, **changes: Any) -> Plan:
        """Copy with some fields replaced; `dp` follows from the other degrees unless it is given."""
        return replace(self, **{"dp": 0, **changes})

    def of_stage(self, stage: int, model: ModelShape) -> Plan:
        """Give the plan of one virtual pipeline stage alone: its MoE layers, and its ranks counted from 0.

        Raises
        ------
        ValueError
            There is no such stage, more stages than the model has layers, or other MoE layers than
            the plan's.
        """
        layout, own = self.layout.of_stage(stage), set(self.layout.layers_of_stage(stage, model.n_layers))
        if model.layers != self.layers:
            raise ValueError(f"layers = {self.layers}: {model.name} has {model.layers} MoE layers")
        index = [i for i, layer in enumerate(model.moe_layer_ids) if layer in own]
        weights = self.replica_weights_DLGP
        return self.with_(
            layer_ids=tuple(self.layer_ids[i] for i in index),
            slots_DLGP=self.slots_DLGP[:, index],
            replica_weights_DLGP=None if weights is None else weights[:, index],
            gpu_of_rank=layout.gpu_of_rank,
            pp=1,
            virtual=1,
            folded=False,
            stage_of_layer=None,
        )

    def check_legal(self, *, file: str | Path | None = None) -> None:
        """Every expert at least once per layer and EP group, no slot beyond what a rank has.

        Raises
        ------
        MoecastError
            Names the first layer and expert or rank that breaks the rule.
        """
        check_filled(self.slots_DLGP, self.experts, self.slots_per_rank, file=file)

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
        return plan_value(self)

    @classmethod
    def from_json(cls, value: Any, *, file: str | Path | None = None) -> Plan:
        """Read what `to_json` wrote.

        Raises
        ------
        MoecastError
            A field is missing, unknown, of the wrong type or out of range; or the plan is not
            legal.
        """
        try:
            plan = cls(**plan_fields(value, file=file))
        except ValueError as error:
            raise MoecastError(str(error), file=file) from error
        plan.check_legal(file=file)
        return plan


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
    return Plan.from_json(read_json(path), file=path)


def check_sizes(plan: Plan) -> None:
    """Every size beside the layout's is a whole number in its range.

    Raises
    ------
    ValueError
        Names the first that is not.
    """
    whole("experts", plan.experts, most=MOST_EXPERTS)
    whole("choices", plan.choices, most=plan.experts)
    whole("microbatches", plan.microbatches, most=MOST_RANKS)


def _among(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: one of {', '.join(allowed)}")
