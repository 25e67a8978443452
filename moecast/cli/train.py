"""``moecast train``: what a training step costs, with its pipeline, gradients and optimizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from moecast.cli import options
from moecast.cli.asked import Asked
from moecast.cli.question_options import takes_question
from moecast.cli.recipe_options import AskedRecipe

OF_SERVING = (
    "phase", "tokens_per_rank", "steps", "context", "one_topic_per_step",
    "request_placement", "reuse", "recorded_steps", "fluid_steps",
    "gains", "isl", "schedule", "microbatches", "topics", "kv_type", "weight_type", "dense_type", "load",
    "prefill_tokens", "speculate", "acceptance",
)  # fmt: skip


@takes_question(without=OF_SERVING, network="bound")
def train_command(
    *,
    asked: Asked,
    recipe: AskedRecipe,
    out: Annotated[Path | None, typer.Option("--out", help="Write the forecast as JSON here.")] = None,
    timeline: Annotated[
        Path | None, typer.Option("--timeline", help="Write the step for ui.perfetto.dev here.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Forecast a training step: time and where it goes, tokens/s and model FLOP/s per GPU, the bubble, memory by part.

    The pipeline has --pp ranks with --vpp chunks each; experts are reduced over the ranks that hold
    the same ones.

    Example: moecast train --cluster dgx-h100 --nodes 8 --model deepseek-v2-lite --routing uniform
    --pp 4 --ep 8
    """
    from moecast.cli import render
    from moecast.cli.inputs import read_inputs, read_or_make_plan
    from moecast.files import check_outputs
    from moecast.sim.training import simulate_training, write_training

    check_outputs({"--out": out, "--timeline": timeline}, asked.files)
    trained = recipe.recipe()
    asked = drawn_for(asked, recipe)
    inputs = read_inputs(asked, quiet=json)
    plan = read_or_make_plan(asked, inputs)
    with render.progress("simulating", quiet=json):
        prediction = simulate_training(
            inputs.cluster,
            inputs.model,
            plan,
            inputs.trace,
            trained,
            schedule=recipe.schedule,
            drawn=recipe.drawn,
            from_phase=asked.from_phase,
            network=asked.network,
            memory_fraction=asked.memory_fraction,
            seed=asked.seed,
            notes=(*(note.replace("(--isl)", "(--sequence)") for note in inputs.notes), *said_of_file(asked)),
            timeline=timeline,
        )
    if out is not None:
        write_training(prediction, out)
    if json:
        render.echo_json(prediction.to_json())
    else:
        render.show_rows(prediction.table_title, prediction.table_rows(), prediction.table_notes())


def drawn_for(asked: Asked, recipe: AskedRecipe) -> Asked:
    """The question whose routing a step trains on: of what only serving has, its default."""
    plain = {name: getattr(Asked(), name) for name in OF_SERVING}
    by_law = asked.routing not in (None, "trace")  # recorded sequences have their own lengths
    length = {"isl": recipe.sequence if by_law else None}
    tokens, drawn = recipe.microbatch * recipe.sequence, {"steps": recipe.drawn, "reuse": True}
    return replace(asked, **{**plain, **length, **drawn, "tokens_per_rank": tokens})


def said_of_file(asked: Asked) -> tuple[str, ...]:
    """What options changed of the question file, and what of it a training step has no use for."""
    left = ", ".join(asked.unused)
    note = () if asked.file is None or not left else (f"not of a training step, in {asked.file.name}: {left}",)
    return (*(f"override: {override}" for override in asked.overrides), *note)
