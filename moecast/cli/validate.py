"""``moecast validate``: the ladder of rungs for one plan; under ``torchrun``, with a replay on real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from moecast.cli import options
from moecast.cli.asked import Asked
from moecast.cli.question_options import takes_question
from moecast.cli.validate_check import check_command
from moecast.cli.validate_published import published_command

if TYPE_CHECKING:
    from moecast.sim import Question
    from moecast.validate import Ladder, Measurement


RUN = ("load", "network", "fluid_steps", "memory_fraction", "gains")
"""Fields of a question that the ladder has no use for: it runs every rung there is."""


BESIDE: dict[str, Callable[..., None]] = {"published": published_command, "check": check_command}
"""Commands whose name may stand where a question file stands: what is checked is not a plan of the user's."""


class ValidateCommand(TyperCommand):
    """`moecast validate`, which leaves its arguments to the command that the first of them names."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the arguments, as this command or as the one that is named."""
        if not args or args[0] not in BESIDE:
            return super().make_context(info_name, args, parent, **extra)
        beside = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        beside.command()(BESIDE[args[0]])
        return typer.main.get_command(beside).make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)


@takes_question(without=RUN, steps=1)
def validate_command(
    *,
    asked: Asked,
    measurement: Annotated[
        Path | None, typer.Option("--measurement", help="What an earlier replay of the same question wrote.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the measurement (under torchrun) or the ladder here.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Replay: how often each exchange is timed.")] = 5,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Replay: how often it runs before that.")] = 2,
    experts: Annotated[
        bool, typer.Option("--experts", help="Replay: also run the experts on the rows that arrive.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Say how far to trust a forecast: a time for every rung that exists, and its error against the rung above.

    Under torchrun it also moves the plan's own uneven token counts between the processes, with NCCL
    where every rank has a GPU and with gloo elsewhere, and checks every byte that arrives. One
    process stands for one rank:

    $ torchrun --no-python --nproc-per-node 8 moecast validate --plan plan.json --cluster dgx-h200
    --trace t.parquet

    What others measured: moecast validate published --help. A benchmark's own file: moecast
    validate check --help

    Example: moecast validate --plan plan.json --cluster dgx-h200 --model deepseek-v2-lite --trace
    t.parquet
    """
    import json as json_module

    from moecast.cli import render
    from moecast.cli.inputs import read_inputs, read_question
    from moecast.files import check_outputs, write_text
    from moecast.validate import read_measurement, validate, write_measurement
    from moecast.validate.launch import under_torchrun

    check_outputs({"--out": out}, {**asked.files, "--measurement": measurement})
    question = read_question(asked, read_inputs(asked, quiet=json))
    measured = None if measurement is None else read_measurement(measurement)
    if under_torchrun():
        measured, first = _replay(question, repeats=repeats, warmup=warmup, experts=experts)
        if not first:
            return
    with render.progress("validating", quiet=json):
        ladder = validate(question, measurement=measured)
    answer = ladder.to_json() | {"measurement": None if measured is None else measured.to_json()}
    if out is not None and under_torchrun() and measured is not None:
        write_measurement(measured, out)
    elif out is not None:
        write_text(out, json_module.dumps(answer, indent=1, allow_nan=False) + "\n")
    if json:
        render.echo_json(answer)
    else:
        _show(ladder, measured)


def _replay(asked: Question, *, repeats: int, warmup: int, experts: bool) -> tuple[Measurement, bool]:
    """Replay on this job; the second value tells whether this process is the one that reports."""
    from moecast.validate.job import join_job
    from moecast.validate.replay import Effort, replay

    effort = Effort(repeats=repeats, warmup=warmup, experts=experts)
    with join_job(asked.plan.ranks) as job:
        measured = replay(job, asked.cluster, asked.model, asked.plan, asked.trace, asked.workload, effort=effort)
        return measured, job.rank == 0


def _show(ladder: Ladder, measured: Measurement | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    from moecast.cli import render
    from moecast.units import format_bytes, format_s

    out = render.console()
    for label in ladder.labels:
        out.print(f"[yellow]{escape(label)}[/yellow]")
    table = Table(title=ladder.title, title_justify="left", title_style="bold")
    table.add_column("rung")
    for name in ("step time", "error", "exchanges alone", "error", "time to answer"):
        table.add_column(name, justify="right")
    table.add_column("")
    for rung in ladder.rungs:
        times = [_or_dash(value, format_s) for value in (rung.step_time_s, rung.exchange_s, rung.cost_s)]
        errors = [_or_dash(value, "{:+.1%}".format) for value in (rung.step_error, rung.exchange_error)]
        note = f"not run: {rung.not_run}" if rung.not_run else ""
        if rung.elsewhere:
            note = f"{rung.elsewhere}: other hardware, no error"
        table.add_row(rung.rung, times[0], errors[0], times[1], errors[1], times[2], note)
    out.print(table)
    out.print("error: (this rung - the next above that has the number) / that one")
    for rung_name, errors_by_exchange in ladder.layer_errors.items():
        told = ", ".join(f"{name} {error:.1%}" for name, error in errors_by_exchange.items())
        out.print(f"{rung_name} against hardware, mean absolute error of a layer: {told}")
    if measured is not None:
        versions = ", ".join(f"{name} {version}" for name, version in measured.software.items())
        out.print(
            f"hardware: {measured.backend} on {measured.ranks} x {measured.hardware[0]} ({versions}), {measured.date}; "
            f"{measured.rows_checked} rows checked byte by byte, "
            f"{format_bytes(measured.dispatch_bytes)} dispatched a step"
        )


def _or_dash(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None else form(value)
