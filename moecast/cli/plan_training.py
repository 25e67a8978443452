"""`moecast plan --for training`: what it reads and prints around the search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecast.errors import MoecastError

if TYPE_CHECKING:
    from moecast.cli.asked import Asked
    from moecast.cli.recipe_options import AskedRecipe
    from moecast.placement.layouts.training import FoundTraining, TrainingAnswers, TrainingQuestion, TrainingSpace
    from moecast.processes import Workers

TRAINING = "training."
SERVINGS_NETWORK = "fluid:1%"
"""The rung of `moecast plan` where nobody names one; whole training steps are timed by ``bound`` then."""
TIMED = 2
"""Layouts that are timed whole where nobody says."""
AXES = {"schedule": "schedules", "microbatch": "microbatches", "recompute": "recomputes", "zero": "zeros"}
"""Options that hold an axis of the search to one value."""
OF_SERVING = {"--slo": "", "--osl": 1024, "--serve": "both", "--requests": None}
"""Options that a training job has no use for, and their defaults."""

TRAINERS = ("megatron", "neutral")
"""Engines that train."""
DECIDED = {"isl": "--sequence", "weight_type": "--precision", "dense_type": "--precision", "kv_type": "--precision"}
"""Fields of a question that another option says of a training job."""


def plan(
    asked: Asked,
    asked_recipe: AskedRecipe,
    *,
    gpus: int | None,
    scored: int,
    timed: int,
    prices: Sequence[str],
    out: Path | None,
    write: Path | None,
    report: Path | None,
    moved: bool,
    jobs: int | None,
    brief: bool,
    json: bool,
) -> None:
    """Search, and say what was found.

    Raises
    ------
    MoecastError
        A question without an answer.
    """
    from moecast.cli import plan_training_text, planning, render
    from moecast.files import write_text
    from moecast.placement.layouts.training import TrainingAnswers, find_training
    from moecast.processes import Workers

    cost = planning.parse_prices(prices)
    question = read_question(asked, asked_recipe, quiet=json)
    n_gpus = question.cluster.n_gpus if gpus is None else gpus
    hourly = cost.of(question.cluster.hardware.name)
    network = str(asked.network) if asked.network != SERVINGS_NETWORK else "bound"
    answers = Workers(TrainingAnswers(question), planning.jobs_for(n_gpus, jobs))
    with render.progress("searching", quiet=json) as advance, answers as workers:
        found = find_training(
            question,
            n_gpus,
            space=read_space(asked, asked_recipe, n_gpus),
            scored=scored,
            timed=timed,
            network=network,
            progress=planning.told(advance),
            workers=workers,
        )
        value = plan_training_text.answer(found, question, asked, hourly=hourly, plan_file=write)
        value["sensitivity"] = _moved(found, workers, planning.told(advance)) if moved else None
    if write is not None:
        write_winner(found, question, write)
    if out is not None:
        write_text(out, planning.to_text(value))
    if report is not None:
        from moecast.report.plan_page import write_plan_page

        write_plan_page(value, plan_training_text.winner_rows(value), report)
    if json:
        render.echo_json(value)
    elif brief:
        planning.show_brief(plan_training_text.winner_rows(value), value["launch"])
    else:
        plan_training_text.show(value)


def _moved(
    found: FoundTraining, workers: Workers[TrainingAnswers], progress: Callable[[str, int, int], None] | None
) -> dict[str, Any]:
    from moecast.placement.layouts.training.sensitivity import training_sensitivity

    return training_sensitivity(workers.given.question, found, progress=progress, workers=workers)


def refuse_recipe(asked: Asked) -> None:
    """Refuse options of a training recipe where layouts for serving are asked for.

    Raises
    ------
    MoecastError
        One was given.
    """
    for name in sorted(asked.given):
        if name.startswith(TRAINING):
            option = f"--{name.removeprefix(TRAINING).replace('_', '-')}"
            raise MoecastError("is of a training job: --for training", field=option)


def refuse_serving(asked: Asked, **given: object) -> None:
    """Refuse options of serving where layouts for training are asked for.

    Raises
    ------
    MoecastError
        One was given.
    """
    for name in (name for name in DECIDED if name in asked.given):
        option = f"--{name.replace('_', '-')}"
        raise MoecastError(f"{DECIDED[name]} says it of a training job", field=option, value=getattr(asked, name))
    if asked.engine not in (None, *TRAINERS):
        rule = f"serves, and a training job runs on {' or '.join(TRAINERS)}"
        raise MoecastError(rule, field="--engine", value=asked.engine)
    for name, value in given.items():
        if value != OF_SERVING[f"--{name}"]:
            raise MoecastError("is of serving: a training job has no such thing", field=f"--{name}", value=value)


def read_question(asked: Asked, asked_recipe: AskedRecipe, *, quiet: bool) -> TrainingQuestion:
    """Read cluster, model, routing and recipe; even routing is made where none is named.

    Raises
    ------
    MoecastError
        As of `read_inputs`, and of the recipe.
    """
    from moecast.cli.plan_inputs import read_plan_inputs
    from moecast.cli.train import drawn_for
    from moecast.placement.layouts.training import TrainingQuestion
    from moecast.sim.trace_layers import trace_of_layers

    recipe = asked_recipe.recipe()
    drawn = drawn_for(asked, asked_recipe)
    inputs = read_plan_inputs(asked, drawn=drawn, types=None, sequence=recipe.sequence, quiet=quiet)
    return TrainingQuestion(
        cluster=inputs.cluster,
        model=inputs.model,
        # A law makes all layers alike: one stands for all.
        trace=trace_of_layers(inputs.trace, [0]) if inputs.made else inputs.trace,
        recipe=recipe,
        drawn=asked_recipe.drawn,
        from_phase=asked.from_phase,
        memory_fraction=asked.memory_fraction,
        seed=asked.seed,
    )


def read_space(asked: Asked, recipe: AskedRecipe, gpus: int) -> TrainingSpace:
    """The usual space; options of a recipe that are given hold their axis to one value."""
    from moecast.placement.layouts.training import TrainingSpace

    held = {axis: (getattr(recipe, name),) for name, axis in AXES.items() if f"{TRAINING}{name}" in asked.given}
    if "schedules" in held:
        from moecast.sim.schedules.pipeline import find_pipeline_schedule

        find_pipeline_schedule(recipe.schedule)
    return TrainingSpace(gpus=gpus, **held)  # type: ignore[arg-type]


def write_winner(found: FoundTraining, question: TrainingQuestion, path: Path) -> None:
    """Write the winner's plan, as `moecast train --plan` reads it."""
    from moecast.sim import write_plan

    layout = found.winner.layout
    write_plan(layout.plan(question.model), path)
