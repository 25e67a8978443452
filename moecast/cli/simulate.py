"""``moecast simulate``: what one plan costs on one cluster, for one routing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moecast.cli import options

if TYPE_CHECKING:
    from moecast.cli.inputs import Inputs
    from moecast.sim import Plan


def simulate_command(
    cluster: options.Cluster,
    trace: options.OptionalTrace = None,
    routing: options.Routing = None,
    isl: options.Isl = None,
    model: options.ModelOrTrace = None,
    nodes: options.Nodes = None,
    fabric: options.Fabric = None,
    dims: options.Dims = None,
    weight_type: options.WeightType = None,
    dense_type: options.DenseType = None,
    kv_type: options.KvType = None,
    load: Annotated[
        Path | None,
        typer.Option(
            "--load",
            help="Counts instead of a trace: a load table that `trace import` wrote; each layer is drawn by itself.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan", help="A plan of moecast, SGLang or TensorRT-LLM.", show_default="contiguous over all GPUs"
        ),
    ] = None,
    ep: options.Ep = None,
    tp: options.Tp = None,
    slots_per_rank: options.SlotsPerRank = None,
    network: Annotated[
        str,
        typer.Option(
            "--network", help="The rung: bound (fast), fluid, or fluid:0.3% (within a tolerance, for many GPUs)."
        ),
    ] = "fluid",
    dispatch: options.Dispatch = None,
    replica_rule: options.ReplicaRule = None,
    schedule: options.Schedule = None,
    phase: options.Phase = "prefill",
    tokens_per_rank: options.TokensPerRank = None,
    steps: options.Steps = 8,
    fluid_steps: Annotated[
        int, typer.Option("--fluid-steps", min=1, help="How many of the steps the fluid rung runs; bound runs all.")
    ] = 4,
    context: options.Context = None,
    topics: options.Topics = None,
    one_topic_per_step: options.OneTopic = False,
    reuse: options.Reuse = False,
    from_phase: options.FromPhase = None,
    recorded_steps: options.RecordedSteps = False,
    memory_fraction: options.MemoryFraction = 0.9,
    part: Annotated[
        str, typer.Option("--part", help="all, planning or measuring: which part of the trace (see --plan-on).")
    ] = "all",
    plan_on: options.PlanOn = 0.5,
    gains: Annotated[
        bool, typer.Option("--gains/--no-gains", help="Time a step again with twice of each resource.")
    ] = True,
    out: Annotated[Path | None, typer.Option("--out", help="Write the prediction as JSON here.")] = None,
    timeline: Annotated[
        Path | None, typer.Option("--timeline", help="Write the first step for ui.perfetto.dev here.")
    ] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Forecast a plan: step time and where it goes, tokens/s, latency, memory, balance, fan-out, the bottleneck.

    Without --plan it is the contiguous one: experts in order over all GPUs, as engines do by default.

    Example: moecast simulate --cluster dgx-h200 --nodes 4 --model deepseek-v2-lite --trace t.parquet --phase prefill
    """
    from moecast.cli import inputs as reading
    from moecast.cli import render
    from moecast.files import check_outputs
    from moecast.sim import simulate, write_prediction

    check_outputs(
        {"--out": out, "--timeline": timeline},
        {"--plan": plan, "--trace": trace, "--load": load, "--cluster": cluster, "--model": model},
    )
    types = reading.ElementTypes(weight_type=weight_type, dense_type=dense_type, kv_type=kv_type)
    inputs = reading.read_inputs(
        cluster=cluster,
        nodes=nodes,
        fabric=fabric,
        model=model,
        dims=dims,
        source=reading.Source(trace=trace, routing=routing, load=load, part=part, plan_on=plan_on, isl=isl),
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
    asked = read_or_make_plan(
        plan, inputs, ep=ep, tp=tp, slots_per_rank=slots_per_rank, dispatch=dispatch, replica_rule=replica_rule,
        schedule=schedule,
    )  # fmt: skip
    with render.progress("simulating", quiet=json) as advance:
        prediction = simulate(
            inputs.cluster,
            inputs.model,
            asked,
            inputs.trace,
            inputs.workload,
            network=network,
            overrides=overridden(dispatch=dispatch, replica_rule=replica_rule, tp=tp, schedule=schedule, **types.given),
            notes=inputs.notes,
            max_fluid_steps=fluid_steps,
            memory_fraction=memory_fraction,
            gains=gains,
            seed=seed,
            progress=advance,
        )
    if out is not None:
        write_prediction(prediction, out)
    if timeline is not None:
        render.write_timeline(timeline, inputs, asked, network=network, seed=seed)
    if json:
        render.echo_json(prediction.to_json())
    else:
        render.show_prediction(prediction)


def overridden(**given: object) -> list[str]:
    """What the command line changed in the plan, as the result says it."""
    return [f"--{name.replace('_', '-')} {value}" for name, value in given.items() if value is not None]


def read_or_make_plan(
    path: Path | None,
    inputs: Inputs,
    *,
    ep: int | None,
    tp: int | None,
    slots_per_rank: int | None,
    dispatch: str | None,
    replica_rule: str | None,
    schedule: str | None = None,
) -> Plan:
    """The plan of `--plan`, in any format that can be read, else the contiguous one, and what else is asked put in.

    Raises
    ------
    MoecastError
        The file is no plan, the slots cannot hold the experts, or `tp` does not divide the ranks.
    """
    from moecast.errors import MoecastError
    from moecast.placement.engines import read_any
    from moecast.sim import Plan
    from moecast.sim.schedules import find_schedule

    mode, rule = options.dispatch_mode(dispatch), options.replica_rule(replica_rule)
    model = inputs.model
    ranks = inputs.cluster.n_gpus
    group = ep or ranks
    if ranks % group:
        raise MoecastError(f"does not divide the cluster's {ranks} GPUs into EP groups", field="--ep", value=group)
    if path is not None:
        plan = read_any(path, model=model, ep=group)
    else:
        try:
            plan = Plan.contiguous(
                layers=model.layers,
                experts=model.experts,
                choices=model.choices,
                ep=group,
                groups=ranks // group,
                slots_per_rank=slots_per_rank,
                layer_ids=model.moe_layer_ids,
            )
        except ValueError as error:
            raise MoecastError(str(error), field="--slots-per-rank", value=slots_per_rank) from error
    if tp is not None:
        if plan.ranks % tp:
            raise MoecastError(f"does not divide the plan's {plan.ranks} ranks", field="--tp", value=tp)
        plan = plan.with_(tp=tp, dp=plan.ranks // tp)
    if rule is not None:
        if rule == "weights" and plan.replica_weights_DLGP is None:
            raise MoecastError("the plan has no replica weights", file=path, field="--replica-rule", value=rule)
        plan = plan.with_(replica_rule=rule)
    if schedule is not None:
        plan = plan.with_(schedule=find_schedule(schedule).name)
    return plan if mode is None else plan.with_(dispatch=mode)
