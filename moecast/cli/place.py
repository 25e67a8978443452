"""``moecast place``: which expert goes on which GPU, what it is worth, and how far from the best possible it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moecast.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moecast.cli.inputs import Inputs
    from moecast.placement import LoadPlacement, Placement
    from moecast.sim import ModelShape
    from moecast.sim.plan import ReplicaRule
    from moecast.traces import TraceMeta

# What says which tokens are in flight together: a load table has no tokens.
OF_STEPS = (
    "dims",
    "isl",
    "tp",
    "recorded_steps",
    "time_limit",
    "work_limit",
    "balance_weight",
    "plan_on",
    "phase",
    "tokens_per_rank",
    "steps",
    "context",
    "topics",
    "one_topic_per_step",
    "reuse",
    "from_phase",
)


def place_command(
    context_: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="The plan to write, as JSON.", show_default=False)],
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            help="A preset (`moecast topology list`) or a YAML file.",
            show_default="with --load and --ep: ranks of one domain",
        ),
    ] = None,
    trace: options.OptionalTrace = None,
    routing: options.Routing = None,
    isl: options.Isl = None,
    load: Annotated[
        Path | None,
        typer.Option(
            "--load", help="Counts instead of a trace: a load table that `trace import` wrote.", show_default=False
        ),
    ] = None,
    model: options.ModelOrTrace = None,
    nodes: options.Nodes = None,
    fabric: options.Fabric = None,
    dims: options.Dims = None,
    weight_type: options.WeightType = None,
    dense_type: options.DenseType = None,
    kv_type: options.KvType = None,
    solver: Annotated[
        str | None,
        typer.Option(
            "--solver",
            help="contiguous, round-robin, eplb, balance, joint or exact; the first four with --load.",
            show_default="joint; balance with --load",
        ),
    ] = None,
    ep: options.Ep = None,
    tp: options.Tp = None,
    slots_per_rank: options.SlotsPerRank = None,
    dispatch: options.Dispatch = None,
    replica_rule: options.ReplicaRule = None,
    schedule: options.Schedule = None,
    time_limit: Annotated[
        str | None,
        typer.Option(
            "--time-limit", help="Wall time, as 60s or 2min: a legal plan and an honest gap, not always the same plan."
        ),
    ] = None,
    work_limit: Annotated[
        int | None, typer.Option("--work-limit", min=1, help="Moves tried: the same plan on every machine.")
    ] = None,
    balance_weight: Annotated[
        float | None,
        typer.Option(
            "--balance-weight", min=0.0, help="joint: weigh balance against fan-out by hand.", show_default="by seconds"
        ),
    ] = None,
    expert_groups: Annotated[
        int | None,
        typer.Option(
            "--expert-groups", min=1, help="eplb: groups the router limits a token to.", show_default="the model's"
        ),
    ] = None,
    plan_on: options.PlanOn = 0.5,
    phase: options.Phase = "prefill",
    tokens_per_rank: options.TokensPerRank = None,
    steps: options.Steps = 8,
    context: options.Context = None,
    topics: options.Topics = None,
    one_topic_per_step: options.OneTopic = False,
    reuse: options.Reuse = False,
    from_phase: options.FromPhase = None,
    recorded_steps: options.RecordedSteps = False,
    export: Annotated[
        str | None,
        typer.Option("--export", help="Also write the plan for sglang, trtllm, vllm or vllm-ascend, beside --out."),
    ] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Find an expert placement, with a certificate of what no plan can beat.

    The objective is the mean step time on the planning part of the trace, under the rung fluid (bound beyond 64 ranks);
    with --load, the load of the fullest rank.

    Example: moecast place --cluster dgx-h200 --nodes 4 --model deepseek-v2-lite --trace t.parquet --out plan.json
    """
    from moecast.cli import inputs as reading
    from moecast.cli import render
    from moecast.errors import MoecastError
    from moecast.files import check_outputs
    from moecast.placement import place
    from moecast.placement.engines import engine_path, find_engine, write_engine_file
    from moecast.sim import describe, write_plan

    exported = None if export is None else engine_path(out, export)
    check_outputs(
        {"--out": out, "--export": exported},
        {"--trace": trace, "--load": load, "--cluster": cluster, "--model": model},
    )
    rule = options.replica_rule(replica_rule, made=True)
    rule = rule or ("round_robin" if export is None else find_engine(export).replica_rule)
    if load is not None and (trace is not None or routing is not None):
        raise MoecastError(
            "give either a trace (--trace), routing to make (--routing) or a load table (--load)", field="--load"
        )
    if load is not None:
        _refuse_steps(context_)
        by_load, shape, notes = _place_by_load(
            load, cluster=cluster, nodes=nodes, fabric=fabric, model=model, solver=solver or "balance", ep=ep,
            slots_per_rank=slots_per_rank, dispatch=dispatch, replica_rule=rule, export=export,
            expert_groups=expert_groups, seed=seed,
        )  # fmt: skip
        write_plan(by_load.plan, out)
        if export is not None and exported is not None and shape is not None:
            write_engine_file(by_load.plan, exported, engine=export, model=shape)
        if json:
            said = {"notes": list(notes), "plan": str(out), "export": exported and str(exported)}
            render.echo_json(by_load.to_json() | said)
        else:
            _show_by_load(by_load, notes, out, exported)
        return
    if cluster is None:
        raise MoecastError("name a preset (`moecast topology list`) or a YAML file", field="--cluster")
    solver, limit_s = solver or "joint", parse_time_limit(time_limit)
    types = reading.ElementTypes(weight_type=weight_type, dense_type=dense_type, kv_type=kv_type)
    inputs = reading.read_inputs(
        cluster=cluster,
        nodes=nodes,
        fabric=fabric,
        model=model,
        dims=dims,
        source=reading.Source(trace=trace, routing=routing, part="planning", plan_on=plan_on, isl=isl),
        phase=phase,
        tokens_per_rank=tokens_per_rank,
        steps=steps,
        context=context,
        topics=topics,
        one_topic_per_step=one_topic_per_step,
        reuse=reuse,
        from_phase=from_phase,
        recorded_steps=recorded_steps,
        tp=tp,
        seed=seed,
        types=types,
        quiet=json,
    )
    with render.progress(f"placing by {solver}", quiet=json) as advance:
        placement = place(
            inputs.cluster,
            inputs.model,
            inputs.trace,
            inputs.workload,
            solver=solver,
            ep=ep,
            tp=tp or 1,
            slots_per_rank=slots_per_rank,
            dispatch=options.dispatch_mode(dispatch),
            replica_rule=rule,
            schedule=schedule or "sequential",
            time_limit_s=limit_s,
            work_limit=work_limit,
            balance_weight=balance_weight,
            fill=export is not None,
            expert_groups=expert_groups,
            trace_part=options.planning_part(plan_on),
            seed=seed,
            progress=advance,
        )
    write_plan(placement.plan, out)
    labels = describe.labels(inputs.model, inputs.trace, inputs.workload)
    if export is not None and exported is not None:
        write_engine_file(placement.plan, exported, engine=export, model=inputs.model)
    if json:
        said = {"labels": list(labels), "notes": list(inputs.notes)}
        render.echo_json(placement.to_json() | said | {"plan": str(out), "export": exported and str(exported)})
    else:
        _show(placement, inputs, labels, out, exported)


def _refuse_steps(context_: typer.Context) -> None:
    """Options about steps and searches mean nothing to a load table: say so rather than ignore them."""
    from moecast.errors import MoecastError

    for name in OF_STEPS:
        source = context_.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            rule = "a load table has no tokens, steps or times for it to act on"
            raise MoecastError(rule, field=f"--{name.replace('_', '-')}")


def _place_by_load(
    load: Path,
    *,
    cluster: str | None,
    nodes: int | None,
    fabric: str | None,
    model: str | None,
    solver: str,
    ep: int | None,
    slots_per_rank: int | None,
    dispatch: str | None,
    replica_rule: ReplicaRule,
    export: str | None,
    expert_groups: int | None,
    seed: int,
) -> tuple[LoadPlacement, ModelShape | None, tuple[str, ...]]:
    """Read the counts and place by them; what was assumed of the cluster comes along."""
    from moecast.errors import MoecastError
    from moecast.placement import place_by_load
    from moecast.topology import load_cluster
    from moecast.traces import read_load_table

    if cluster is None and (nodes, fabric) != (None, None):
        raise MoecastError("name the cluster they are of", field="--cluster")
    table = read_load_table(load)
    shape = _model_of(model, table.meta, load)
    if export is not None and shape is None:
        raise MoecastError("an engine's file needs the model: name it with --model", file=load)
    built = None if cluster is None else load_cluster(cluster, nodes=nodes, fabric=fabric)
    placement = place_by_load(
        table,
        cluster=built,
        model=shape,
        solver=solver,
        ep=ep,
        slots_per_rank=slots_per_rank,
        dispatch=options.dispatch_mode(dispatch),
        replica_rule=replica_rule,
        fill=export is not None,
        expert_groups=expert_groups,
        seed=seed,
    )
    return placement, shape, built.notes if built else ()


def _model_of(model: str | None, meta: TraceMeta, file: Path) -> ModelShape | None:
    """The model of `--model`, else of the table's own config; None where neither is there."""
    from moecast.cli.inputs import read_model

    return None if model is None and meta.config is None else read_model(model, None, meta, file=file)


def _show_by_load(placement: LoadPlacement, notes: Sequence[str], out: Path, exported: Path | None) -> None:
    _show_notes(notes)
    _show_found(placement.table_title, placement.table_rows(), placement.table_notes(), out, exported)


def _show_notes(notes: Sequence[str]) -> None:
    from rich.markup import escape

    from moecast.cli import render

    for note in notes:
        render.console().print(f"[yellow]{escape(note)}[/yellow]")


def _show_found(
    title: str, rows: Sequence[tuple[str, str]], notes: Sequence[str], out: Path, exported: Path | None
) -> None:
    from rich.markup import escape

    from moecast.cli import render

    render.show_rows(title, rows, notes)
    engine = f", for the engine: [bold]{escape(str(exported))}[/bold]" if exported else ""
    render.console().print(f"plan: [bold]{escape(str(out))}[/bold]{engine}")


def parse_time_limit(text: str | None) -> float | None:
    """Read ``60s``, ``2 min`` or ``1.5h`` as seconds.

    Raises
    ------
    MoecastError
        No unit, or not more than zero.
    """
    from moecast.errors import MoecastError
    from moecast.units import parse

    if text is None:
        return None
    seconds = parse(re.sub(r"(?<=[0-9.])(?=[a-zA-Z])", " ", text), "time", field="--time-limit")
    if seconds <= 0:
        raise MoecastError("a time limit is more than zero, such as 60s", field="--time-limit", value=text)
    return seconds


def _show(placement: Placement, inputs: Inputs, labels: Sequence[str], out: Path, exported: Path | None) -> None:
    rows = placement.table_rows()
    if not inputs.model.is_whole:
        objective = f"objective: time of the {inputs.model.layers} layers simulated, on the planning part"
        rows[0] = (objective, rows[0][1])
    _show_notes([*labels, *inputs.notes])
    _show_found(placement.table_title, rows, placement.table_notes(), out, exported)
