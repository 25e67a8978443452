"""``moecast plan``: which layout to run, what it serves, and how far from the best possible it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moecast.cli import options
from moecast.cli.asked import Asked
from moecast.cli.question_options import takes_question
from moecast.cli.recipe_options import AskedRecipe

OF_ONE_PLAN = (
    "plan", "ep", "tp", "cp", "dp", "pp", "vpp", "etp", "sequence_parallel", "context_exchange", "context_split",
    "slots_per_rank", "dispatch", "replica_rule", "schedule", "microbatches", "phase", "tokens_per_rank", "steps",
    "context", "prefill_tokens", "speculate", "acceptance", "topics", "one_topic_per_step",
    "request_placement", "recorded_steps",
    "fluid_steps", "gains", "reuse", "load",
)  # fmt: skip
"""Fields of a question that a search decides itself."""

PLACED = 10
"""Layouts for serving that get a placement of their own where nobody says."""


@takes_question(without=OF_ONE_PLAN, network="fluid:1%")
def plan_command(
    *,
    asked: Asked,
    slo: Annotated[
        str, typer.Option("--slo", help="Limits that a user takes: ttft=2s,tpot=30ms. Either may be left out.")
    ] = "",
    job: Annotated[
        str, typer.Option("--for", help="serving, or training: then options of a recipe say what is trained.")
    ] = "serving",
    recipe: AskedRecipe,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="GPUs to use.", show_default="all of the cluster")
    ] = None,
    osl: Annotated[int, typer.Option("--osl", min=1, help="Tokens decoded behind each prompt.")] = 1024,
    serving: Annotated[
        str, typer.Option("--serve", help="agg (instances that do both), disagg (some for prompts), or both.")
    ] = "both",
    scored: Annotated[
        int, typer.Option("--scored", min=1, help="Layouts timed by the rung bound; for training, by their layers.")
    ] = 200,
    placed: Annotated[
        int | None,
        typer.Option(
            "--placed",
            min=1,
            help="Of these, timed by --network with their own placement; for training, timed whole.",
            show_default="10, for training 2",
        ),
    ] = None,
    requests: Annotated[
        str | None,
        typer.Option(
            "--requests", help="Run requests through the best, too: closed:N (N users in all), poisson:RATE/s, …"
        ),
    ] = None,
    moved: Annotated[
        bool,
        typer.Option("--sensitivity/--no-sensitivity", help="Move each uncertain parameter by its own error, too."),
    ] = True,
    price: Annotated[
        list[str] | None,
        typer.Option("--price", help="What an hour of a GPU costs: h100=2.5/h, or 2.5/h. For $ per million tokens."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write all that was found as JSON here.")] = None,
    write: Annotated[
        Path | None, typer.Option("--write-plan", help="Write the winner's plan here, and the engine's file beside.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write a page with the front here.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Processes.", show_default="1; on 16 GPUs and more one a core, at most 8"),
    ] = None,
    brief: Annotated[
        bool,
        typer.Option("--brief", help="Print the winner alone, and what starts it; without --sensitivity."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Find the layout that serves most tokens per GPU within limits on latency, or trains fastest, and what to run.

    Numbers of serving are of steps without a queue: every batch full, prompts as many as are
    decoded. Of a training job the search decides TP, CP, PP and its chunks, EP, ETP, DP, the
    schedule, microbatches, recomputation and ZeRO; --schedule, --microbatch, --recompute and --zero
    hold one of these.

    Example: moecast plan --cluster dgx-h200 --nodes 2 --model deepseek-v3 --routing uniform --slo
    ttft=2s,tpot=40ms
    """
    from moecast.cli import plan_beside, plan_training, planning, render
    from moecast.files import check_outputs, write_text
    from moecast.placement.layouts import LayoutAnswers, find_serving
    from moecast.processes import Workers

    planning.check_job(job)
    check_outputs({"--out": out, "--write-plan": write, "--report": report}, asked.files)
    if job == "training":
        plan_training.refuse_serving(asked, slo=slo, osl=osl, serve=serving, requests=requests)
        plan_training.plan(
            asked,
            recipe,
            gpus=gpus,
            scored=scored,
            timed=placed or plan_training.TIMED,
            prices=price or [],
            out=out,
            write=write,
            report=report,
            moved=moved and not brief,
            jobs=jobs,
            brief=brief,
            json=json,
        )
        return
    plan_training.refuse_recipe(asked)
    limits, cost = planning.parse_slo(slo), planning.parse_prices(price or [])
    modes, law = planning.parse_modes(serving), plan_beside.parse_law(requests)
    question = planning.read_serving_question(asked, osl=osl, quiet=json)
    n_gpus = question.cluster.n_gpus if gpus is None else gpus
    hourly = cost.of(question.cluster.hardware.name)
    answers = Workers(LayoutAnswers(question), planning.jobs_for(n_gpus, jobs))
    with render.progress("searching", quiet=json) as advance, answers as workers:
        found = find_serving(
            question,
            n_gpus,
            limits,
            modes=modes,
            scored=scored,
            placed=placed or PLACED,
            network=str(asked.network),
            progress=planning.told(advance),
            workers=workers,
        )
        answer = planning.answer(found, workers, asked, hourly=hourly, plan_file=write)
        answer["requests"] = plan_beside.served(question, found, law, planning.told(advance))
        answer["sensitivity"] = (
            plan_beside.moved(found, workers, planning.told(advance)) if moved and not brief else None
        )
    if write is not None:
        planning.write_winner(found, question, write)
    if out is not None:
        write_text(out, planning.to_text(answer))
    if report is not None:
        from moecast.report.plan_page import write_plan_page

        write_plan_page(answer, planning.winner_rows(answer), report)
    if json:
        render.echo_json(answer)
    elif brief:
        planning.show_brief(planning.winner_rows(answer), answer["launch"])
    else:
        planning.show(answer)
