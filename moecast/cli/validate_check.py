"""``moecast validate check``: the forecast beside a benchmark's own result file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moecast.cli import options

if TYPE_CHECKING:
    from moecast.cli.asked import Asked
    from moecast.validate.results import Checked, ServingResult

OF_A_STEP = {"phase": "decode", "steps": 1, "network": "bound", "gains": False, "reuse": True}


def check_command(
    result: Annotated[
        Path,
        typer.Argument(
            metavar="RESULT",
            help="JSON of vllm bench serve (or with its fields, as InferenceX has), AIPerf or "
            "GuideLLM; text of nccl-tests.",
        ),
    ],
    *,
    question: Annotated[
        Path | None,
        typer.Option("--question", help="Serving: model, cluster and layout, as `moecast simulate` takes them."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Serving: a field of the question, as plan.tp=8.")
    ] = None,
    batch: Annotated[
        float | None,
        typer.Option(
            "--batch",
            help="Serving: sequences that decode on each rank that attends by itself.",
            show_default="output tokens/s x time per token over the ranks, else the concurrency",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", "--cluster", help="nccl-tests: the cluster they ran on.")
    ] = None,
    nodes: options.Nodes = None,
    ranks: Annotated[
        int | None, typer.Option("--ranks", min=2, help="nccl-tests: GPUs.", show_default="those that it lists")
    ] = None,
    operation: Annotated[
        str | None, typer.Option("--op", help="nccl-tests: the collective.", show_default="the one that it names")
    ] = None,
    json: options.Json = False,
) -> None:
    """Lay the forecast beside what a benchmark measured: time per output token, or the times of a collective.

    Example: moecast validate check result.json --question q.yaml --set plan.tp=8
    """
    from moecast.cli import render
    from moecast.files import read_text
    from moecast.validate.results.nccl_tests import is_nccl_tests

    if is_nccl_tests(read_text(result)):
        found = _collectives(result, preset, nodes, ranks, operation)
        notes: list[str] = []
    else:
        found, notes = _serving(result, question, set_ or [], batch, json=json)
    if json:
        render.echo_json({"file": str(result), "rows": [row.to_json() for row in found], "notes": notes})
    else:
        _show(found, notes)


def _collectives(
    file: Path, preset: str | None, nodes: int | None, ranks: int | None, operation: str | None
) -> list[Checked]:
    from moecast.errors import MoecastError
    from moecast.sim import usual_rung
    from moecast.topology import load_cluster
    from moecast.validate.results import check_collectives, read_nccl_tests

    if preset is None:
        rule = "names the cluster that nccl-tests ran on, as dgx-h200"
        raise MoecastError(rule, field="--preset")
    read = read_nccl_tests(file, operation=operation)
    cluster = load_cluster(preset, nodes=nodes)
    rung = usual_rung(ranks or read.ranks or cluster.n_gpus)
    return check_collectives(read, cluster, rung=rung, ranks=ranks)


def _serving(
    file: Path, question: Path | None, sets: list[str], batch: float | None, *, json: bool
) -> tuple[list[Checked], list[str]]:
    from moecast.cli import render
    from moecast.cli.question_file import field_names
    from moecast.cli.question_options import gather, refuse_varied
    from moecast.errors import MoecastError
    from moecast.validate.results import read_serving

    read = read_serving(file)
    if question is None and not sets:
        rule = "names what was run: a question file with cluster, model and plan"
        raise MoecastError(rule, field="--question")
    gathered = gather(question, sets, {}, OF_A_STEP, taken=field_names())
    if gathered.varied:
        refuse_varied(question)
    asked = replace(gathered.asked, phase="decode")
    if asked.trace is None and asked.routing is None:
        asked = replace(asked, routing="uniform")
    found, notes = [], []
    with render.progress("forecasting", quiet=json):
        for one in read:
            checked, told = _of_run(asked, one, batch, file)
            found.append(checked)
            notes += [note for note in told if note not in notes]
    return found, notes


def _of_run(asked: Asked, run: ServingResult, batch: float | None, file: Path) -> tuple[Checked, list[str]]:
    from moecast.cli.inputs import read_inputs, read_question
    from moecast.errors import MoecastError
    from moecast.sim import simulate_question
    from moecast.sim.accuracy.grounds import grounds_text
    from moecast.topology import load_cluster
    from moecast.validate.results import check_serving

    def answer(sequences: int) -> Any:
        part = replace(
            asked, tokens_per_rank=sequences, context=run.context if asked.context is None else asked.context
        )
        return simulate_question(read_question(part, read_inputs(part, quiet=True)))

    if asked.cluster is None:
        raise MoecastError(
            "names no cluster", field="--question", value=None if asked.file is None else asked.file.name
        )
    gpus = load_cluster(asked.cluster, nodes=asked.nodes, fabric=asked.fabric).n_gpus
    each = batch if batch is not None else asked.tokens_per_rank
    if each is None:
        if run.in_flight is None:
            raise MoecastError("says neither throughput nor concurrency: --batch", file=file)
        each = run.in_flight / asked.degrees.sources(gpus)
    if not 0 < each < float("inf"):
        raise MoecastError("more than 0", field="--batch", value=each)
    checked, prediction = check_serving(run, batch=each, answer=answer)
    notes = [text for text in (grounds_text(prediction.rests_on), *prediction.labels) if text]
    if run.ttft_s is not None:
        notes.append(
            f"time to first token, measured {run.ttft_s * 1e3:,.1f} ms: requests wait for one "
            "another, which a step's forecast does not say"
        )
    notes.append("prefill between decode steps on the same GPUs is measured, and not in the forecast")
    return checked, notes


def _show(found: list[Checked], notes: list[str]) -> None:
    from rich.table import Table

    from moecast.cli import render
    from moecast.units import format_s

    table = Table(title="Forecast beside measurement", title_justify="left", title_style="bold")
    table.add_column("", overflow="fold")
    for name in ("measured", "forecast", "error", "80 %", "inside"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in found:
        known = row.low_s is not None and row.high_s is not None
        between = f"{format_s(row.low_s or 0)} to {format_s(row.high_s or 0)}" if known else "-"
        inside = "-" if row.inside is None else "yes" if row.inside else "no"
        times = format_s(row.measured_s), format_s(row.predicted_s)
        table.add_row(row.what, *times, f"{row.error:+.1%}", between, inside, row.note)
    out = render.console()
    out.print(table)
    for note in notes:
        out.print(note, markup=False)
