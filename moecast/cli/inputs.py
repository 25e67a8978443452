"""What several commands read before they start: cluster, model, trace and workload, checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecast.errors import MoecastError

if TYPE_CHECKING:
    from moecast.sim import ModelShape, Workload
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace, TraceMeta

DEFAULT_TOKENS_PER_RANK = {"prefill": 512, "decode": 32}
PARTS = ("all", "planning", "measuring")
DEFAULT_PROMPT = 1024  # tokens of a made prompt
DEFAULT_CONTEXT = 2048  # keys that a made decode token attends to, where --context says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The four inputs of a forecast."""

    cluster: Cluster
    model: ModelShape
    trace: RoutingTrace
    workload: Workload
    notes: tuple[str, ...] = ()


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
            rule = (
                f"the model {model.name} has {ours}: carry the routing over to its shape (--routing trace), make some "
                "(--routing uniform), or take only its widths (--dims instead of --model)"
            )
            raise MoecastError(rule, file=file, field=field, value=theirs)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where routing comes from: `--trace`, `--routing` or `--load`.

    Parameters
    ----------
    part, plan_on
        Which part of it, and where the planning part ends.
    """

    trace: Path | None
    routing: str | None = None
    load: Path | None = None
    part: str = "all"
    plan_on: float = 0.5

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise MoecastError(f"one of {', '.join(PARTS)}", field="--part", value=self.part)
        if self.load is not None and (self.trace is not None or self.routing is not None):
            raise MoecastError("counts are a source of their own: without --trace and --routing", field="--load")
        if self.load is None and self.routing is None and self.trace is None:
            rule = "give a recorded trace (--trace), or make routing of the model's own shape (--routing uniform)"
            raise MoecastError(rule, field="--trace")
        if self.routing is not None and self.trace is not None and self.routing != "trace":
            raise MoecastError("a trace only serves --routing trace", field="--routing", value=self.routing)

    @property
    def made(self) -> bool:
        """Whether routing is made, at the model's own shape."""
        return self.routing is not None or self.load is not None

    def cut(self, trace: RoutingTrace) -> RoutingTrace:
        """The part asked for."""
        return trace if self.part == "all" else trace.split(self.plan_on)[PARTS.index(self.part) - 1]


def read_inputs(
    *,
    cluster: str,
    nodes: int | None,
    fabric: str | None,
    model: str | None,
    dims: str | None,
    source: Source,
    phase: str,
    tokens_per_rank: int | None,
    steps: int,
    context: int | None,
    topics: str | None,
    one_topic_per_step: bool,
    reuse: bool,
    from_phase: str | None,
    recorded_steps: bool = False,
    tp: int | None = None,
    seed: int,
    types: ElementTypes | None = None,
) -> Inputs:
    """Read and check everything a forecast needs, in the order that fails soonest."""
    from moecast.sim import Workload
    from moecast.topology import load_cluster

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
        steps_mode="as-recorded" if recorded_steps else "drawn",
    )
    built = load_cluster(cluster, nodes=nodes, fabric=fabric)
    ranks = max(built.n_gpus // (tp or 1), 1)
    if source.made:
        shape, trace, workload = _made_inputs(source, model, dims, workload, ranks, seed, types)
    else:
        shape, trace = _recorded_inputs(source, model, dims, types)
    notes = built.recipe.notes if built.recipe else ()
    if tokens_per_rank is not None:
        return Inputs(cluster=built, model=shape, trace=trace, workload=workload, notes=notes)
    fitted, said = _fitted(trace, workload, ranks)
    return Inputs(cluster=built, model=shape, trace=trace, workload=fitted, notes=(*notes, *said))


def _recorded_inputs(
    source: Source, model: str | None, dims: str | None, types: ElementTypes | None
) -> tuple[ModelShape, RoutingTrace]:
    from moecast.traces import read_meta, read_trace

    assert source.trace is not None
    shape = read_model(model, dims, read_meta(source.trace), file=source.trace, types=types)
    return shape, source.cut(read_trace(source.trace))


def _made_inputs(
    source: Source,
    model: str | None,
    dims: str | None,
    workload: Workload,
    ranks: int,
    seed: int,
    types: ElementTypes | None,
) -> tuple[ModelShape, RoutingTrace, Workload]:
    """Make as many tokens as the Workload holds, or as many as are made at most, and let it use them again."""
    from dataclasses import replace

    from moecast.sim import load_model
    from moecast.sim.made_routing import parse_law, tokens_needed

    if dims is not None:
        raise MoecastError("routing is made at the model's own shape: name it with --model", field="--dims", value=dims)
    if model is None:
        raise MoecastError("routing is made of a model's shape: name it with --model", field="--model")
    shape = load_model(model)
    shape = shape if types is None else types.put_into(shape)
    tokens, steps, short = tokens_needed(workload, ranks)
    tokens = 2 * tokens if source.part != "all" else tokens
    if source.routing is not None and parse_law(source.routing).name == "trace":
        trace, short = _lifted(source.trace, shape, workload, tokens, ranks, seed)
    else:
        trace = _make(source, shape, workload, tokens, steps, seed)
    return shape, source.cut(trace), replace(workload, reuse=workload.reuse or short)


def _make(source: Source, shape: ModelShape, workload: Workload, tokens: int, steps: int, seed: int) -> RoutingTrace:
    from moecast.sim.made_routing import parse_law, routing_by_law, routing_by_load
    from moecast.traces import read_load_table

    law = None if source.routing is None else parse_law(source.routing)
    context = workload.context or DEFAULT_CONTEXT
    decode = workload.phase == "decode"
    sequence = steps if decode else min(DEFAULT_PROMPT, tokens)
    asked: dict[str, Any] = {
        "tokens": max(tokens, sequence),
        "sequence": sequence,
        "phase": workload.drawn_phase,
        "position": max(context - steps, 0) if decode else 0,
        "seed": seed,
    }
    if source.load is not None:
        return routing_by_load(read_load_table(source.load), shape, **asked)
    assert law is not None
    return routing_by_law(law, shape, **asked)


def _lifted(
    path: Path | None, shape: ModelShape, workload: Workload, tokens: int, ranks: int, seed: int
) -> tuple[RoutingTrace, bool]:
    """Routing like a recorded trace's, carried over to the model's shape; whether it must be used more than once.

    Decode holds a sequence for each place of its batch, as long as recorded ones are.
    """
    import numpy as np

    from moecast.sim.made_routing import MOST_TOKENS
    from moecast.traces import PHASES, concatenate, fit_trace, read_trace, shipped_trace_path, synthesise

    recorded = read_trace(path or shipped_trace_path())
    model = fit_trace(recorded, phase=workload.drawn_phase)
    if workload.phase == "decode":
        own = recorded.phase_T == PHASES.index(workload.drawn_phase)
        length = int(own.sum()) / max(len(np.unique(recorded.sequence_T[own])), 1)
        tokens = max(tokens, round(2.2 * ranks * workload.tokens_per_rank * length))
    wanted = "x".join(map(str, shape.shape_LEK))
    made = synthesise(model, shape=wanted, tokens=min(tokens, 2 * MOST_TOKENS), seed=seed)
    return concatenate(list(made)), tokens > 2 * MOST_TOKENS


def _fitted(trace: RoutingTrace, workload: Workload, ranks: int) -> tuple[Workload, tuple[str, ...]]:
    """What fits of a default Workload, and what to say of it."""
    from moecast.sim import fit_workload

    fitted = fit_workload(trace, workload, ranks=ranks)
    what = "sequences" if workload.phase == "decode" else "tokens"
    if fitted.reuse and not workload.reuse:
        note = f"the trace does not fill {ranks} ranks for {workload.steps} steps: its sequences are used again"
        return fitted, (note,)
    if fitted.tokens_per_rank < workload.tokens_per_rank:
        many = f"{fitted.tokens_per_rank} {what} per rank"
        note = f"takes {many} (default {workload.tokens_per_rank}): the most that the trace fills on {ranks} ranks"
        return fitted, (f"{note} for {workload.steps} steps",)
    return fitted, ()
