"""``moecast sweep``: one question, and the fields of it that vary."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moecast.cli import options
from moecast.cli.asked import Asked, option
from moecast.cli.question_file import dotted
from moecast.cli.question_options import takes_question

if TYPE_CHECKING:
    from moecast.sim import Prediction

MOST_POINTS = 10_000
ANSWERS = ("step", "80 %", "tokens/s per GPU", "balance", "fits", "limited by")
"""Columns of the table that is shown; one that no point has anything in is left out."""
NUMBERS = (
    "step_time_s", "layer_time_s", "tokens_per_s", "tokens_per_s_per_gpu", "balance", "fan_out", "dispatch_bytes",
    "bottleneck", "fits",
)  # fmt: skip
"""What a table says of each point, where the prediction has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of a sweep.

    Parameters
    ----------
    values
        Its fields that vary, by their names in a question file.
    prediction
        The answer; None where there is none.
    refused
        Why there is none.
    """

    values: Mapping[str, Any]
    prediction: Prediction | None = None
    refused: str = ""

    def to_json(self) -> dict[str, Any]:
        """The point as plain JSON values."""
        found = self.prediction
        return {
            "values": {name: str(value) if isinstance(value, Path) else value for name, value in self.values.items()},
            "prediction": None if found is None else found.to_json(),
            "refused": self.refused or None,
        }

    def row(self) -> dict[str, Any]:
        """The point as a row of a table."""
        found = self.prediction
        numbers = {name: None if found is None else getattr(found, name) for name in NUMBERS}
        memory = None if found is None or found.memory_bytes is None else found.memory_bytes["total"]
        low_s, high_s = (None, None) if found is None or found.interval_s is None else found.interval_s
        interval = {"step_low_s": low_s, "step_high_s": high_s}
        labels = "" if found is None else "; ".join(found.labels)
        return {**self.values, **numbers, **interval, "memory_bytes": memory, "labels": labels, "refused": self.refused}


@takes_question()
def sweep_command(
    *,
    asked: Asked,
    varied: dict[str, list[Any]],
    out: Annotated[Path | None, typer.Option("--out", help="Write all predictions as JSON here.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the table as CSV here.")] = None,
    parquet: Annotated[Path | None, typer.Option("--parquet", help="Write the table as Parquet here.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Processes.", show_default="one for each core")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            help="Answer on a Ray cluster: local (started here), auto (the one this machine is in) "
            "or HOST:PORT. Its machines have the same files at the same paths, and the same "
            "moecast.",
            show_default="on this machine, without Ray",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Forecast a question once for every combination of the fields that vary.

    Points without an answer say why.

    The fields are those of `moecast simulate`, from a question file, `--set` or the options.

    With an output, finished points are kept beside it: after a kill the same command goes on where
    it was.

    Example: moecast sweep q.yaml --over workload.tokens_per_rank=64:512:x2 --over plan.tp=1,2 --csv
    t.csv
    """
    import json as json_module

    from moecast.cli import render
    from moecast.errors import MoecastError
    from moecast.files import check_outputs, write_text

    check_outputs({"--out": out, "--csv": csv, "--parquet": parquet}, asked.files)
    if ray is not None and jobs is not None:
        raise MoecastError(
            "a Ray cluster knows how many processors it has: give one of --jobs and --ray", field="--jobs"
        )
    if not varied:
        rule = "names what varies: --vary workload.tokens_per_rank=64,128,256"
        raise MoecastError(rule, field="--vary")
    journal = journal_of(out, csv, parquet)
    with render.progress("sweeping", quiet=json) as advance:
        points = answer_points(asked, varied, journal=journal, jobs=jobs, ray=ray, advance=advance)
    answer = {
        "varied": {dotted(name): list(map(_plain, values)) for name, values in varied.items()},
        "points": [point.to_json() for point in points],
    }
    if out is not None:
        write_text(out, json_module.dumps(answer, indent=1, allow_nan=False) + "\n")
    if csv is not None:
        write_text(csv, to_csv(points))
    if parquet is not None:
        _write_parquet(points, parquet)
    if journal is not None:
        journal.unlink(missing_ok=True)
    if json:
        render.echo_json(answer)
    else:
        _show(points, varied)
    if all(point.prediction is None for point in points):
        raise typer.Exit(2)


def answer_points(
    asked: Asked,
    varied: Mapping[str, Sequence[Any]],
    *,
    journal: Path | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    advance: Any = None,
) -> list[Point]:
    """Answer the question at every combination, the last field varying fastest.

    Parameters
    ----------
    journal
        Where finished points are kept until `drop_journal`; those that stand there are not answered
        again.
    jobs
        Processes; None: one for each core, where there are points enough.
    ray
        The address of a Ray cluster that answers instead.

    Raises
    ------
    MoecastError
        More points than `MOST_POINTS`, or a journal of another sweep.
    """
    import math

    from moecast.cli.sweep_journal import Journal, name_of_sweep
    from moecast.cli.sweep_ray import answered_by_ray
    from moecast.cli.sweep_workers import answered, jobs_for
    from moecast.errors import MoecastError
    from moecast.sim import Prediction

    count = math.prod(map(len, varied.values()))
    if count > MOST_POINTS:
        raise MoecastError(f"{count} points, more than {MOST_POINTS}", field="--vary")
    points = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    with Journal(journal, name_of_sweep(asked, varied)) as kept:
        left = [(number, changed) for number, changed in enumerate(points) if number not in kept.finished]
        # points that share inputs follow each other: routing is read or made once for them
        left.sort(key=_inputs_of)
        if ray is None:
            answers = answered(asked, left, jobs=jobs_for(len(left), jobs))
        else:
            answers = answered_by_ray(asked, left, address=ray)
        for number, answer in answers:
            kept.add(number, answer)
            if advance is not None:
                advance(len(kept.finished), count)
    found = []
    for number, changed in enumerate(points):
        answer = kept.finished[number]
        value = answer["prediction"]
        prediction = None if value is None else Prediction.from_json(value)
        named = {dotted(name): value for name, value in changed.items()}
        found.append(Point(values=named, prediction=prediction, refused=answer["refused"] or ""))
    return found


def _inputs_of(point: tuple[int, Mapping[str, Any]]) -> list[str]:
    """What the inputs of a point depend on, of the fields that vary."""
    from moecast.cli.sweep_workers import OF_THE_PLAN

    return [repr(value) for name, value in point[1].items() if name not in OF_THE_PLAN]


def journal_of(*outputs: Path | None) -> Path | None:
    """Where a sweep with these outputs keeps finished points: beside the first of them."""
    from moecast.cli.sweep_journal import SUFFIX

    first = next((path for path in outputs if path is not None), None)
    return None if first is None else first.with_name(first.name + SUFFIX)


def to_csv(points: Sequence[Point]) -> str:
    """The points as comma-separated rows, numbers in full."""
    import csv
    import io

    rows = [point.row() for point in points]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_parquet(points: Sequence[Point], path: Path) -> None:
    """Write the table as Parquet, whole or not at all; a field whose values are of several kinds as text."""
    import polars as pl

    from moecast.files import atomic_path

    rows = [point.row() for point in points]
    columns = {}
    for name in rows[0]:
        values = [_plain(row[name]) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        mixed = len(kinds) > 1 and not kinds <= {int, float}
        columns[name] = pl.Series(
            name, [None if value is None else str(value) for value in values] if mixed else values, strict=False
        )
    with atomic_path(path) as part:
        pl.DataFrame(list(columns.values())).write_parquet(part)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _show(points: Sequence[Point], varied: Collection[str]) -> None:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from moecast.cli import render
    from moecast.sim.accuracy.grounds import grounds_text

    found = [point.prediction for point in points if point.prediction is not None]
    out = render.console()
    for label in _counted([prediction.labels for prediction in found]):
        out.print(f"[yellow]{escape(label)}[/yellow]")
    table = Table(title=Text(_title(found)), title_justify="left", title_style="bold")
    answers = [_answers(point) for point in points]
    told = [i for i in range(len(ANSWERS)) if any(cells[i] != "-" for cells in answers)]
    for name in (*points[0].values, *(ANSWERS[i] for i in told)):
        table.add_column(Text(name), justify="right", overflow="fold")
    for point, cells in zip(points, answers, strict=True):
        values = ["-" if value is None else str(value) for value in point.values.values()]
        table.add_row(*map(Text, (*values, *(cells[i] for i in told))))
    out.print(table)
    said_by_columns = tuple(f"override: {option(name)} " for name in varied)
    for grounds in _counted([[grounds_text(prediction.rests_on)] for prediction in found]):
        out.print(grounds, markup=False)
    said = [[line for line in prediction.warnings if not line.startswith(said_by_columns)] for prediction in found]
    for warning in _counted(said):
        out.print(f"[yellow]warning:[/yellow] {escape(warning)}")


def _answers(point: Point) -> list[str]:
    """The cells of a point's answer."""
    from moecast.units import format_s

    found = point.prediction
    if found is None:
        return ["-", "-", "-", "-", "-", f"refused: {point.refused}"]
    time_s = found.layer_time_s if found.step_time_s is None else found.step_time_s
    rate = "-" if found.tokens_per_s_per_gpu is None else f"{found.tokens_per_s_per_gpu:,.0f}"
    fits = "-" if found.fits is None else "yes" if found.fits else "no"
    between = "-" if found.interval_s is None else " to ".join(map(format_s, found.interval_s))
    return [format_s(time_s), between, rate, f"{found.balance:.2f}", fits, _limit(found)]


def _limit(found: Prediction) -> str:
    """What limits a point, where its gains were tried."""
    from moecast.sim.gains import NONE

    return found.bottleneck if found.bottleneck and found.bottleneck != NONE else "-"


def _title(predictions: Sequence[Prediction]) -> str:
    """What all points have in common: model, phase, cluster and rung."""
    facts = [{getattr(found, name) for found in predictions} for name in ("model", "phase", "cluster", "network")]
    return ", ".join(str(*values) for values in facts if len(values) == 1)


def _counted(lines: Sequence[Sequence[str]]) -> list[str]:
    """Every line once, and of how many points it is where not of all."""
    among = Counter(line for of_point in lines for line in dict.fromkeys(of_point))
    return [
        line if count == len(lines) else f"{line} ({count} of {len(lines)} points)" for line, count in among.items()
    ]
