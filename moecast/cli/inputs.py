"""What several commands read before they start: cluster, model, trace and workload, checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        model = _at_dims(load_model(dims), meta, file)
    else:
        model = _matching(_named_model(name, meta, file), meta, file)
        model = model if dims is None else model.with_dims(load_model(dims))
    return model if types is None else types.put_into(model)


def _at_dims(widths: ModelShape, meta: TraceMeta, file: Path) -> ModelShape:
    """Routing of any model at the widths of another.

    Of a trace that has gaps between its layers only those that it has are kept: whether what lies between is dense or
    was not recorded is not known.
    """
    ids, ours = _rising(meta.layer_ids), meta.model or file.stem
    model = widths.with_routing(ours, layers=meta.layers, experts=meta.experts, choices=meta.choices, layer_ids=ids)
    if ids is None or ids == widths.moe_layer_ids or ids[-1] - ids[0] == len(ids) - 1:
        return model
    return replace(model.of_layers(ids), name=model.name)


def _named_model(name: str | None, meta: TraceMeta, file: Path) -> ModelShape:
    from moecast.sim import ModelShape, load_model

    if name is not None:
        return load_model(name)
    if meta.config is not None:
        return ModelShape.from_config(meta.config, name=meta.model)
    rule = "the trace holds no config.json: name the model with --model, or widths for its L, E and K with --dims"
    raise MoecastError(rule, file=file)


_OTHERWISE = (
    "carry the routing over to its shape (--routing trace), make some (--routing uniform), or take only its widths "
    "(--dims instead of --model)"
)


def _matching(model: ModelShape, meta: TraceMeta, file: Path) -> ModelShape:
    """The model, or those of its MoE layers that the trace has."""
    if (meta.experts, meta.choices) == (model.experts, model.choices) and meta.layers < model.layers:
        ids = _rising(meta.layer_ids)
        if ids is None:
            rule = f"the model {model.name} has {model.layers}, and the trace does not say which of them it has"
            raise MoecastError(f"{rule}: {_OTHERWISE}", file=file, field="layers", value=meta.layers)
        if wrong := sorted(set(ids) - set(model.moe_layer_ids)):
            rule = f"layer {wrong[0]} is no MoE layer of {model.name}"
            raise MoecastError(f"{rule}: {_OTHERWISE}", file=file, field="layer_ids", value=ids)
        return model.of_layers(ids)
    for field, ours, theirs in (
        ("layers", model.layers, meta.layers),
        ("experts", model.experts, meta.experts),
        ("choices", model.choices, meta.choices),
    ):
        if ours != theirs:
            raise MoecastError(f"the model {model.name} has {ours}: {_OTHERWISE}", file=file, field=field, value=theirs)
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
    isl
        Tokens of each made prompt; None: `made.DEFAULT_ISL`.
    """

    trace: Path | None
    routing: str | None = None
    load: Path | None = None
    part: str = "all"
    plan_on: float = 0.5
    isl: int | None = None

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
        if self.isl is not None and self.load is None and self.routing in (None, "trace"):
            rule = "recorded prompts have their own lengths: for uniform, zipf or power-law routing and --load only"
            raise MoecastError(rule, field="--isl", value=self.isl)

    @property
    def made(self) -> bool:
        """Whether routing is made, at the model's own shape."""
        return self.routing is not None or self.load is not None

    @property
    def share(self) -> float:
        """Share of the tokens that is in the part asked for."""
        return {"all": 1.0, "planning": self.plan_on, "measuring": 1 - self.plan_on}[self.part]

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
    quiet: bool = False,
) -> Inputs:
    """Read and check everything a forecast needs, in the order that fails soonest; `quiet`: without progress."""
    from moecast.cli import made, render
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
    notes = built.notes
    if source.made:
        shape = made.model_of(model, dims, types)
        trace, workload, said = made.routing_for(source, shape, workload, ranks=ranks, seed=seed, quiet=quiet)
        return Inputs(
            cluster=built,
            model=shape,
            trace=trace,
            workload=workload,
            notes=(*notes, *said, *_keys_read(trace, workload)),
        )
    with render.progress("reading", quiet=quiet):
        shape, trace = _recorded_inputs(source, model, dims, types)
    notes = (*notes, *_keys_read(trace, workload))
    if tokens_per_rank is not None:
        return Inputs(cluster=built, model=shape, trace=trace, workload=workload, notes=notes)
    fitted, said = _fitted(trace, workload, ranks)
    return Inputs(cluster=built, model=shape, trace=trace, workload=fitted, notes=(*notes, *said))


def _keys_read(trace: RoutingTrace, workload: Workload) -> tuple[str, ...]:
    """How long the contexts are that nobody gave: they decide what decode's attention and KV cache cost."""
    from moecast.traces import PHASES

    keys_T = trace.position_T[trace.phase_T == PHASES.index(workload.drawn_phase)]
    if workload.phase != "decode" or workload.context is not None or not len(keys_T):
        return ()
    return (f"decoded tokens attend to {keys_T.mean() + 1:,.0f} keys each, by their positions (--context)",)


def _recorded_inputs(
    source: Source, model: str | None, dims: str | None, types: ElementTypes | None
) -> tuple[ModelShape, RoutingTrace]:
    from moecast.traces import read_meta, read_trace

    assert source.trace is not None
    shape = read_model(model, dims, read_meta(source.trace), file=source.trace, types=types)
    return shape, source.cut(read_trace(source.trace))


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
