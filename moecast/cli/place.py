"""``moecast place``: which expert goes on which GPU, what it is worth, and how far from the best possible it is."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moecast.cli import options
from moecast.cli.asked import Asked
from moecast.cli.place_by_load import place_loads, refuse_steps
from moecast.cli.place_outputs import Outputs
from moecast.cli.question_options import takes_question
from moecast.cli.replanning import read_replanning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moecast.cli.inputs import Inputs
    from moecast.placement import Placement

STARTED = time.monotonic()
"""When the command began: a time limit is for all of it, reading and writing too."""


UNUSED = ("part", "plan", "fluid_steps", "memory_fraction", "gains")
"""Fields of a question that a search for its plan has no use for."""


@takes_question(without=UNUSED)
def place_command(
    *,
    asked: Asked,
    out: Annotated[Path, typer.Option("--out", help="The plan to write, as JSON.", show_default=False)],
    solver: Annotated[
        str | None,
        typer.Option(
            "--solver",
            help="contiguous, round-robin, eplb, balance (these four also with --load), random, "
            "local-search, exact, sglang-vec, moetuner, exflow or exflow-strong.",
            show_default="local-search; balance with --load",
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option("--slots", min=1, help="Slots of an EP group in each layer, dealt evenly: 288 on 64 ranks."),
    ] = None,
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
            "--balance-weight",
            min=0.0,
            help="local-search: weigh balance against fan-out by hand.",
            show_default="by seconds",
        ),
    ] = None,
    balance_at_least: Annotated[
        float | None,
        typer.Option(
            "--balance-at-least",
            min=0.0,
            max=1.0,
            help="local-search: the fastest plan whose layers are this even on the planning tokens (0.99).",
            show_default="by seconds",
        ),
    ] = None,
    robust: Annotated[
        str | None,
        typer.Option(
            "--robust", help="topic: do well in steps of any one topic, so that the worst counts.", show_default="no"
        ),
    ] = None,
    expert_groups: Annotated[
        int | None,
        typer.Option(
            "--expert-groups", min=1, help="eplb: groups the router limits a token to.", show_default="the model's"
        ),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            "--export", help="Also write the plan beside --out: sglang, trtllm, vllm, vllm-ascend, eplb or exflow."
        ),
    ] = None,
    advise: Annotated[
        bool,
        typer.Option("--advise", help="Also say in words: is balance the bottleneck, what is a plan worth, rebalance?"),
    ] = False,
    prove: Annotated[
        int | None,
        typer.Option(
            "--prove",
            min=1,
            help="Prove each layer's copies by set partitioning, with so many sets: minutes.",
            show_default="count them",
        ),
    ] = None,
    replan_every: Annotated[
        str | None,
        typer.Option(
            "--replan-every",
            help="Also say whether to make a new plan every so many windows of the planning part: 1,2,4.",
            show_default="no",
        ),
    ] = None,
    windows: Annotated[
        int | None, typer.Option("--windows", min=2, help="--replan-every: windows in all.", show_default="8")
    ] = None,
    window_steps: Annotated[
        int | None,
        typer.Option(
            "--window-steps", min=1, help="--replan-every: steps that a window lasts.", show_default="--steps"
        ),
    ] = None,
    drift: Annotated[
        str | None,
        typer.Option("--drift", help="--replan-every: recorded order, or topic by topic.", show_default="recorded"),
    ] = None,
    beside_steps: Annotated[
        bool,
        typer.Option("--beside-steps", help="--replan-every: move experts while links are free, not in a pause."),
    ] = False,
    keep_ranks: Annotated[
        bool,
        typer.Option("--keep-ranks", help="--replan-every: let ranks trade what a new plan gives them, to move least."),
    ] = False,
    engine_s: Annotated[
        float | None,
        typer.Option(
            "--engine-s",
            min=0.0,
            help="--replan-every: seconds that the engine stands still for each new plan, beside the moves.",
            show_default="0",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Find an expert placement, with a certificate of what no plan can beat.

    The objective is the mean step time on the planning part of the trace, under the rung fluid
    (bound where that is slow); with --load, the load of the fullest rank.

    Example: moecast place --cluster dgx-h200 --nodes 4 --model deepseek-v2-lite --trace t.parquet
    --out plan.json
    """
    from moecast.cli import render
    from moecast.cli.inputs import read_inputs
    from moecast.placement import place
    from moecast.placement.engines import find_engine
    from moecast.sim import describe

    outputs = Outputs(out=out, export=export)
    outputs.check(asked.files)
    rule = options.replica_rule(asked.replica_rule, made=True)
    rule = rule or ("round_robin" if export is None else find_engine(export).replica_rule)
    if asked.load is not None:
        searched = {
            "time_limit": time_limit,
            "work_limit": work_limit,
            "balance_weight": balance_weight,
            "balance_at_least": balance_at_least,
            "robust": robust,
            "advise": advise or None,
            "prove": prove,
            "replan_every": replan_every,
        }
        refuse_steps({*asked.given, *(name for name, value in searched.items() if value is not None)})
        place_loads(
            asked,
            outputs,
            solver=solver or "balance",
            slots=slots,
            replica_rule=rule,
            expert_groups=expert_groups,
            json=json,
        )
        return
    replanning = read_replanning(
        replan_every,
        windows=windows,
        window_steps=window_steps,
        order=drift,
        paused=False if beside_steps else None,
        keep_ranks=keep_ranks or None,
        engine_s=engine_s,
    )
    solver, limit_s = solver or "local-search", parse_time_limit(time_limit)
    inputs = read_inputs(asked.with_(part="planning"), quiet=json)
    with render.progress(f"placing by {solver}", quiet=json) as advance:
        placement = place(
            inputs.cluster,
            inputs.model,
            inputs.trace,
            inputs.workload,
            solver=solver,
            ep=asked.ep,
            tp=asked.tp or 1,
            degrees=asked.degrees,
            sequence_parallel=asked.sequence_parallel is not False,
            context_exchange=asked.context_exchange or "ring",
            context_split=asked.context_split or "zig-zag",
            slots_per_rank=asked.slots_per_rank,
            slots=slots,
            network=asked.network if "network" in asked.given else "",
            dispatch=options.dispatch_mode(asked.dispatch),
            replica_rule=rule,
            schedule=asked.schedule or "sequential",
            time_limit_s=limit_s and max(limit_s - (time.monotonic() - STARTED), 0.1),
            work_limit=work_limit,
            balance_weight=balance_weight,
            balance_at_least=balance_at_least,
            robust=robust,
            fill=export is not None,
            expert_groups=expert_groups,
            trace_part=options.planning_part(asked.plan_on),
            seed=asked.seed,
            advise=advise,
            prove_nodes=prove or 0,
            replanning=replanning,
            progress=advance,
            say=None if advance is None else advance.say,
        )
    launch = outputs.write(placement.plan, inputs.model)
    labels = describe.labels(inputs.model, inputs.trace, inputs.workload)
    if json:
        render.echo_json(placement.to_json() | {"labels": list(labels)} | outputs.said(inputs.notes, launch))
    else:
        _show(placement, inputs, labels, outputs, launch)


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
        rule = "a time limit is more than zero, such as 60s"
        raise MoecastError(rule, field="--time-limit", value=text)
    return seconds


def _show(placement: Placement, inputs: Inputs, labels: Sequence[str], outputs: Outputs, launch: str) -> None:
    rows = placement.table_rows()
    if not inputs.model.is_whole:
        objective = f"objective: time of the {inputs.model.layers} layers simulated, on the planning part"
        rows[0] = (objective, rows[0][1])
    outputs.show(placement.table_title, rows, placement.table_notes(), launch=launch, warned=[*labels, *inputs.notes])
