"""``moecast place``: which expert goes on which GPU, what it is worth, and how far from the best possible it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moecast.cli import options

if TYPE_CHECKING:
    from moecast.placement import Placement


def place_command(
    cluster: options.Cluster,
    trace: options.Trace,
    out: Annotated[Path, typer.Option("--out", help="The plan to write, as JSON.", show_default=False)],
    model: options.ModelOrTrace = None,
    nodes: options.Nodes = None,
    fabric: options.Fabric = None,
    dims: options.Dims = None,
    solver: Annotated[
        str, typer.Option("--solver", help="contiguous, round-robin, eplb, balance, joint or exact.")
    ] = "joint",
    ep: options.Ep = None,
    slots_per_rank: options.SlotsPerRank = None,
    dispatch: options.Dispatch = None,
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
    plan_on: options.PlanOn = 0.5,
    phase: options.Phase = "prefill",
    tokens_per_rank: options.TokensPerRank = None,
    steps: options.Steps = 8,
    context: options.Context = None,
    topics: options.Topics = None,
    one_topic_per_step: options.OneTopic = False,
    reuse: options.Reuse = False,
    from_phase: options.FromPhase = None,
    export: Annotated[
        str | None, typer.Option("--export", help="Also write the plan for sglang or trtllm, beside --out.")
    ] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Find an expert placement, with a certificate of what no plan can beat.

    The objective is the mean step time on the planning part of the trace, under the rung fluid (bound beyond 64 ranks).

    Example: moecast place --cluster dgx-h200 --nodes 4 --model deepseek-v2-lite --trace t.parquet --out plan.json
    """
    from moecast.cli import inputs as reading
    from moecast.cli import render
    from moecast.files import check_writable
    from moecast.placement import place
    from moecast.placement.engines import engine_path, write_engine_file
    from moecast.sim import write_plan

    exported = None if export is None else engine_path(out, export)
    for path in (out, exported):
        if path is not None:
            check_writable(path)
    limit_s = parse_time_limit(time_limit)
    inputs = reading.read_inputs(
        cluster=cluster,
        nodes=nodes,
        fabric=fabric,
        model=model,
        dims=dims,
        trace=trace,
        part="planning",
        plan_on=plan_on,
        phase=phase,
        tokens_per_rank=tokens_per_rank,
        steps=steps,
        context=context,
        topics=topics,
        one_topic_per_step=one_topic_per_step,
        reuse=reuse,
        from_phase=from_phase,
        seed=seed,
    )
    with render.progress(f"placing by {solver}", quiet=json) as advance:
        placement = place(
            inputs.cluster,
            inputs.model,
            inputs.trace,
            inputs.workload,
            solver=solver,
            ep=ep,
            slots_per_rank=slots_per_rank,
            dispatch=options.dispatch_mode(dispatch),
            time_limit_s=limit_s,
            work_limit=work_limit,
            balance_weight=balance_weight,
            fill=export is not None,
            trace_part=options.planning_part(plan_on),
            seed=seed,
            progress=advance,
        )
    write_plan(placement.plan, out)
    if export is not None and exported is not None:
        write_engine_file(placement.plan, exported, engine=export, model=inputs.model)
    if json:
        render.echo_json(placement.to_json() | {"plan": str(out), "export": exported and str(exported)})
    else:
        _show(placement, out, exported)


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


def _show(placement: Placement, out: Path, exported: Path | None) -> None:
    from rich.table import Table

    from moecast.cli import render
    from moecast.units import format_s

    table = Table(show_header=False, title=f"{placement.solver}", title_justify="left", title_style="bold")
    rows = (
        ("objective: step time on the planning part", format_s(placement.objective_s)),
        ("certificate: no plan with these slots can beat", format_s(placement.bound_s)),
        ("gap", f"{100 * placement.gap:.1f} %"),
        ("balance pooled", f"{placement.balance_pooled:.3f}"),
        ("fan-out, ranks", f"{placement.fan_out:.3f}"),
        ("wasted slots", str(placement.wasted_slots)),
        ("solver's time", format_s(placement.seconds)),
    )
    for name, text in rows:
        table.add_row(name, text)
    console = render.console()
    console.print(table)
    console.print(f"plan: [bold]{out}[/bold]" + (f", for the engine: [bold]{exported}[/bold]" if exported else ""))
