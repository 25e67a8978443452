"""What several commands read before they start: cluster, model, trace and workload, checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from moecast.cli import options
from moecast.errors import MoecastError

if TYPE_CHECKING:
    from moecast.cli.asked import Asked, ElementTypes, Source
    from moecast.sim import ModelShape, Plan, Question, Workload
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace, TraceMeta


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

    `--dims` needs neither: L, E and K are in the trace. A trace of some of the model's MoE layers,
    by their ids, gives those layers of it.

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

    Of a trace that has gaps between its layers only those that it has are kept: whether what lies
    between is dense or was not recorded is not known.
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
    "carry the routing over to its shape (--routing trace), make some (--routing uniform), or take "
    "only its widths (--dims instead of --model)"
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


def read_inputs(asked: Asked, *, quiet: bool = False) -> Inputs:
    """Read and check everything a forecast needs, in the order that fails soonest.

    `quiet`: without progress.

    Raises
    ------
    MoecastError
        Something is missing, cannot be read or does not go with the rest.
    """
    from moecast.cli import made, render
    from moecast.sim import kernels_on
    from moecast.topology import load_cluster

    source, types = asked.source, asked.types
    if asked.cluster is None:
        rule = "name a preset (`moecast topology list`) or a YAML file"
        raise MoecastError(rule, field="--cluster")
    workload = asked.workload()
    built = load_cluster(asked.cluster, nodes=asked.nodes, fabric=asked.fabric)
    built = kernels_on(built, kernels=asked.kernels, engine=asked.engine)
    ranks = asked.degrees.sources(built.n_gpus)
    if source.made:
        shape = made.model_of(asked.model, asked.dims, types)
        trace, workload, said = made.routing_for(source, shape, workload, ranks=ranks, seed=asked.seed, quiet=quiet)
    else:
        with render.progress("reading", quiet=quiet):
            shape, trace = _recorded_inputs(source, asked.model, asked.dims, types)
        said = ()
    said = (*built.notes, *said, *_keys_read(trace, workload))
    if not source.made and asked.tokens_per_rank is None:
        workload, fitted = _fitted(trace, workload, ranks)
        said = (*said, *fitted)
    return Inputs(cluster=built, model=shape, trace=trace, workload=workload, notes=said)


def read_question(asked: Asked, inputs: Inputs, *, gpus: int | None = None) -> Question:
    """Put the inputs and the plan that is asked for together.

    `gpus`: of the cluster's first so many.

    Raises
    ------
    MoecastError
        The plan cannot be read or made, or the question has no answer.
    """
    from moecast.sim import Question

    return Question(
        cluster=inputs.cluster,
        model=inputs.model,
        plan=read_or_make_plan(asked, inputs, gpus=gpus),
        trace=inputs.trace,
        workload=inputs.workload,
        network=asked.network,
        max_fluid_steps=asked.fluid_steps,
        memory_fraction=asked.memory_fraction,
        gains=asked.gains,
        seed=asked.seed,
        overrides=asked.changes,
        notes=inputs.notes,
    )


def read_or_make_plan(asked: Asked, inputs: Inputs, *, gpus: int | None = None) -> Plan:
    """The plan of `--plan`, in any format that can be read, else the contiguous one, and what else is asked put in.

    `gpus`: of the cluster's first so many; None: all of them.

    Raises
    ------
    MoecastError
        The file is no plan, the slots cannot hold the experts, or a degree does not divide the
        ranks.
    """
    from moecast.cli.asked import CONTEXT
    from moecast.sim.schedules import find_schedule

    mode, rule = options.dispatch_mode(asked.dispatch), options.replica_rule(asked.replica_rule)
    plan = _laid_out(asked, inputs.model, inputs.cluster.n_gpus if gpus is None else gpus)
    if rule is not None:
        if rule == "weights" and plan.replica_weights_DLGP is None:
            raise MoecastError("the plan has no replica weights", file=asked.plan, field="--replica-rule", value=rule)
        plan = plan.with_(replica_rule=rule)
    if asked.sequence_parallel is not None:
        plan = plan.with_(sequence_parallel=asked.sequence_parallel)
    for name in CONTEXT:
        if (value := getattr(asked, name)) is not None:
            plan = _with_name(plan, name, value)
    if asked.schedule is not None:
        plan = plan.with_(schedule=find_schedule(asked.schedule).name)
    if asked.microbatches is not None:
        plan = plan.with_(microbatches=asked.microbatches)
    return plan if mode is None else plan.with_(dispatch=mode)


def _with_name(plan: Plan, name: str, value: str) -> Plan:
    """Change a field of a plan that has one of some names."""
    try:
        return plan.with_(**{name: value})
    except ValueError as error:
        raise MoecastError(str(error)) from error


def _laid_out(asked: Asked, model: ModelShape, ranks: int) -> Plan:
    """The plan of `--plan` or the contiguous one, with the degrees that are asked for."""
    from moecast.placement.engines import read_any

    degrees = asked.degrees
    try:
        layout = degrees.layout(ranks) if asked.plan is None or asked.ep else None
        if asked.plan is not None:
            return degrees.put_into(read_any(asked.plan, model=model, ep=layout.ep if layout else ranks))
    except ValueError as error:
        raise MoecastError(f"--{error}") from error
    try:
        sizes_LEK, slots = (model.layers, model.experts, model.choices), asked.slots_per_rank
        return degrees.contiguous(sizes_LEK, model.moe_layer_ids, ranks=ranks, slots_per_rank=slots)
    except ValueError as error:
        raise MoecastError(str(error), field="--slots-per-rank", value=slots) from error


def _keys_read(trace: RoutingTrace, workload: Workload) -> tuple[str, ...]:
    """How long the contexts are that nobody gave: they decide what decode's attention and KV cache cost."""
    from moecast.traces import PHASES

    decode = workload.decoding
    if decode is None or decode.context is not None:
        return ()
    keys_T = trace.position_T[trace.phase_T == PHASES.index(decode.drawn_phase)]
    if not len(keys_T):
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
    what = workload.kernels.counts
    if fitted.reuse and not workload.reuse:
        note = f"the trace does not fill {ranks} ranks for {workload.steps} steps: its sequences are used again"
        return fitted, (note,)
    if fitted.tokens_per_rank < workload.tokens_per_rank:
        many = f"{fitted.tokens_per_rank} {what} per rank"
        note = f"takes {many} (default {workload.tokens_per_rank}): the most that the trace fills on {ranks} ranks"
        return fitted, (f"{note} for {workload.steps} steps",)
    return fitted, ()
