"""``moecast train``: what a training step costs, with its pipeline, gradients and optimizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moecast.cli import options
from moecast.cli.asked import Asked
from moecast.cli.question_options import takes_question

if TYPE_CHECKING:
    from moecast.sim.training import Recipe

OF_SERVING = (
    "phase", "tokens_per_rank", "steps", "context", "one_topic_per_step", "reuse", "recorded_steps", "fluid_steps",
    "gains", "isl", "schedule", "microbatches", "topics", "kv_type", "weight_type", "dense_type", "load",
)  # fmt: skip
DRAWN = 2


@takes_question(without=OF_SERVING, network="bound")
def train_command(
    *,
    asked: Asked,
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule",
            help="Of the pipeline: gpipe, 1f1b, interleaved_1f1b, zb_h1, zb_v, dualpipe, dualpipe_v, or one of them "
            "with its all-to-all overlapped.",
        ),
    ] = "1f1b",
    sequence: Annotated[int, typer.Option("--sequence", min=1, help="Tokens of a sequence.")] = 4096,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences of a step over all ranks (global).")] = 256,
    microbatch: Annotated[int, typer.Option("--microbatch", min=1, help="Sequences of a microbatch on a rank.")] = 1,
    precision: Annotated[str, typer.Option("--precision", help="bf16 or fp8.")] = "bf16",
    recompute: Annotated[str, typer.Option("--recompute", help="none, selective or full.")] = "none",
    optimizer: Annotated[str, typer.Option("--optimizer", help="adam or muon.")] = "adam",
    zero: Annotated[
        int, typer.Option("--zero", min=0, max=3, help="What data-parallel ranks hold a part of only (1: Megatron's).")
    ] = 1,
    host_wait: Annotated[
        str,
        typer.Option(
            "--host-wait",
            help="Time that a rank waits for its host before it sends, in each direction of an MoE layer: 11 ms was "
            "fitted on Megatron's steps on EC2 P6-B300 (docs/accuracy.md).",
        ),
    ] = "0 s",
    drawn: Annotated[
        int, typer.Option("--drawn", min=1, help="Microbatches whose routing is drawn; the others repeat them.")
    ] = DRAWN,
    out: Annotated[Path | None, typer.Option("--out", help="Write the forecast as JSON here.")] = None,
    timeline: Annotated[
        Path | None, typer.Option("--timeline", help="Write the step for ui.perfetto.dev here.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Forecast a training step: time and where it goes, tokens/s and model FLOP/s per GPU, the bubble, memory by part.

    The pipeline has --pp ranks with --vpp chunks each; experts are reduced over the ranks that hold the same ones.

    Example: moecast train --cluster dgx-h100 --nodes 8 --model deepseek-v2-lite --routing uniform --pp 4 --ep 8
    """
    from moecast.cli import render
    from moecast.cli.inputs import read_inputs, read_or_make_plan
    from moecast.files import check_outputs
    from moecast.sim.training import simulate_training, write_training

    check_outputs({"--out": out, "--timeline": timeline}, asked.files)
    recipe = _recipe(sequence, batch, microbatch, precision, recompute, optimizer, zero, host_wait)
    tokens = recipe.tokens_of_microbatch
    asked = replace(asked, phase="prefill", tokens_per_rank=tokens, steps=drawn, isl=sequence, reuse=True)
    inputs = read_inputs(asked, quiet=json)
    plan = read_or_make_plan(asked, inputs)
    with render.progress("simulating", quiet=json):
        prediction = simulate_training(
            inputs.cluster,
            inputs.model,
            plan,
            inputs.trace,
            recipe,
            schedule=schedule,
            drawn=drawn,
            from_phase=asked.from_phase,
            network=asked.network,
            memory_fraction=asked.memory_fraction,
            seed=asked.seed,
            notes=inputs.notes,
            timeline=timeline,
        )
    if out is not None:
        write_training(prediction, out)
    if json:
        render.echo_json(prediction.to_json())
    else:
        render.show_rows(prediction.table_title, prediction.table_rows(), prediction.table_notes())


def _recipe(
    sequence: int,
    batch: int,
    microbatch: int,
    precision: str,
    recompute: str,
    optimizer: str,
    zero: int,
    host_wait: str,
) -> Recipe:
    from moecast.errors import MoecastError
    from moecast.sim.training import OPTIMIZERS, PRECISIONS, RECOMPUTES, Recipe
    from moecast.units import parse

    optimizers = {known.name: known for known in OPTIMIZERS}
    for name, value, known in (
        ("--precision", precision, PRECISIONS), ("--recompute", recompute, RECOMPUTES),
        ("--optimizer", optimizer, optimizers),
    ):  # fmt: skip
        if value not in known:
            raise MoecastError(f"one of {', '.join(known)}", field=name, value=value)
    return Recipe(
        sequence=sequence,
        batch=batch,
        microbatch=microbatch,
        precision=PRECISIONS[precision],
        recompute=RECOMPUTES[recompute],
        optimizer=optimizers[optimizer],
        zero=zero,
        host_s=parse(host_wait, "time", field="--host-wait"),
    )
