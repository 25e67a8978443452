"""What several commands read before they start: cluster, model, trace and workload, checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moecast.errors import MoecastError

if TYPE_CHECKING:
    from moecast.sim import ModelShape, Workload
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace, TraceMeta

DEFAULT_TOKENS_PER_RANK = {"prefill": 512, "decode": 32}
PARTS = ("all", "planning", "measuring")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The four inputs of a forecast."""

    cluster: Cluster
    model: ModelShape
    trace: RoutingTrace
    workload: Workload


def read_model(
    name: str | None, dims: str | None, meta: TraceMeta, *, file: Path, types: ElementTypes | None = None
) -> ModelShape:
    """The model of `--model`, else of the trace's own config, at the dimensions of `--dims`.

    `--dims` needs neither: L, E and K are in the trace. A trace of some of the model's MoE layers, by their ids, gives
    those layers of it.

    Raises
    ------
    MoecastError
        Nothing names a model, or its L, E or K differ from the trace's.
    """
    from moecast.sim import load_model

    if dims is not None and name is None:
        widths = load_model(dims)
        layer_ids = _rising(meta.layer_ids)
        ours = meta.model or file.stem
        model = widths.with_routing(
            ours, layers=meta.layers, experts=meta.experts, choices=meta.choices, layer_ids=layer_ids
        )
    else:
        model = _matching(_named_model(name, meta, file), meta, file)
        model = model if dims is None else model.with_dims(load_model(dims))
    return model if types is None else types.put_into(model)


def _named_model(name: str | None, meta: TraceMeta, file: Path) -> ModelShape:
    from moecast.sim import ModelShape, load_model

    if name is not None:
        return load_model(name)
    if meta.config is not None:
        return ModelShape.from_config(meta.config, name=meta.model)
    rule = "the trace holds no config.json: name the model with --model, or widths for its L, E and K with --dims"
    raise MoecastError(rule, file=file)


def _matching(model: ModelShape, meta: TraceMeta, file: Path) -> ModelShape:
    """The model, or those of its MoE layers that the trace has."""
    if (meta.experts, meta.choices) == (model.experts, model.choices) and meta.layers < model.layers:
        ids = _rising(meta.layer_ids)
        if ids is not None and set(ids) <= set(model.moe_layer_ids):
            return model.of_layers(ids)
    for field, ours, theirs in (
        ("layers", model.layers, meta.layers),
        ("experts", model.experts, meta.experts),
        ("choices", model.choices, meta.choices),
    ):
        if ours != theirs:
            raise MoecastError(f"the model {model.name} has {ours}", file=file, field=field, value=theirs)
    return model


def _rising(layer_ids: Sequence[int] | None) -> tuple[int, ...] | None:
    return tuple(int(layer) for layer in layer_ids) if layer_ids else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementTypes:
    """`--weight-type`, `--dense-type` and `--kv-type`; None: the checkpoint's own."""

    weight_type: str | None = None
    dense_type: str | None = None
    kv_type: str | None = None

    def __post_init__(self) -> None:
        from moecast.sim.element_types import CACHE_TYPES, ELEMENT_TYPES

        for field, known in (("weight_type", ELEMENT_TYPES), ("dense_type", ELEMENT_TYPES), ("kv_type", CACHE_TYPES)):
            value = getattr(self, field)
            if value is not None and value not in known:
                raise MoecastError(f"one of {', '.join(known)}", field=f"--{field.replace('_', '-')}", value=value)

    def put_into(self, model: ModelShape) -> ModelShape:
        """The model with these types."""
        return model.with_types(weight_type=self.weight_type, dense_type=self.dense_type, kv_type=self.kv_type)

    @property
    def given(self) -> dict[str, str | None]:
        """What the result says was changed."""
        return {"weight_type": self.weight_type, "dense_type": self.dense_type, "kv_type": self.kv_type}


def parse_topics(text: str | None) -> dict[str, float] | tuple[str, ...] | None:
    """Read ``law,code`` (restrict) or ``law=3,code=1`` (weights).

    Raises
    ------
    MoecastError
        A weight that is not a number, or weights for some topics only.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not any("=" in part for part in parts):
        return tuple(parts)
    weights: dict[str, float] = {}
    for part in parts:
        name, _, weight = part.partition("=")
        try:
            weights[name] = float(weight)
        except ValueError as error:
            raise MoecastError("give every topic a weight, as in law=3,code=1", field="--topics", value=part) from error
    return weights


def read_inputs(
    *,
    cluster: str,
    nodes: int | None,
    fabric: str | None,
    model: str | None,
    dims: str | None,
    trace: Path,
    part: str,
    plan_on: float,
    phase: str,
    tokens_per_rank: int | None,
    steps: int,
    context: int | None,
    topics: str | None,
    one_topic_per_step: bool,
    reuse: bool,
    from_phase: str | None,
    seed: int,
    types: ElementTypes | None = None,
) -> Inputs:
    """Read and check everything a forecast needs, in the order that fails soonest."""
    from moecast.sim import Workload
    from moecast.topology import load_cluster
    from moecast.traces import read_meta, read_trace

    if part not in PARTS:
        raise MoecastError(f"one of {', '.join(PARTS)}", field="--part", value=part)
    workload = Workload(
        phase=phase,
        tokens_per_rank=tokens_per_rank or DEFAULT_TOKENS_PER_RANK.get(phase, 1),
        steps=steps,
        context=context,
        seed=seed,
        topics=parse_topics(topics),
        one_topic_per_step=one_topic_per_step,
        reuse=reuse,
        from_phase=from_phase,
    )
    built = load_cluster(cluster, nodes=nodes, fabric=fabric)
    shape = read_model(model, dims, read_meta(trace), file=trace, types=types)
    whole = read_trace(trace)
    if part != "all":
        whole = whole.split(plan_on)[PARTS.index(part) - 1]
    return Inputs(cluster=built, model=shape, trace=whole, workload=workload)
