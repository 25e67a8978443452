"""``moecast sweep``: one question, and the fields of it that vary."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moecast.cli import options
from moecast.cli.asked import Asked, option
from moecast.cli.question_file import dotted
from moecast.cli.question_options import takes_question

if TYPE_CHECKING:
    from moecast.cli.inputs import Inputs
    from moecast.sim import Prediction

MOST_POINTS = 10_000
OF_THE_PLAN = (
    "plan", "ep", "sequence_parallel", "context_exchange", "context_split", "slots_per_rank", "dispatch",
    "replica_rule", "schedule", "microbatches", "network", "fluid_steps", "memory_fraction", "gains",
)  # fmt: skip
"""Fields that no input depends on: points that differ in these only share what was read."""
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
    json: options.Json = False,
) -> None:
    """Forecast a question once for every combination of the fields that vary; points without an answer say why.

    The fields are those of `moecast simulate`, from a question file, `--set` or the options.

    Example: moecast sweep q.yaml --vary workload.tokens_per_rank=64,128,256 --vary plan.tp=1,2
    """
    import json as json_module

    from moecast.cli import render
    from moecast.errors import MoecastError
    from moecast.files import check_outputs, write_text

    check_outputs({"--out": out, "--csv": csv}, asked.files)
    if not varied:
        raise MoecastError("names what varies: --vary workload.tokens_per_rank=64,128,256", field="--vary")
    with render.progress("sweeping", quiet=json) as advance:
        points = list(answer_points(asked, varied, advance=advance))
    answer = {"varied": {dotted(name): list(map(_plain, values)) for name, values in varied.items()},
              "points": [point.to_json() for point in points]}  # fmt: skip
    if out is not None:
        write_text(out, json_module.dumps(answer, indent=1, allow_nan=False) + "\n")
    if csv is not None:
        write_text(csv, to_csv(points))
    if json:
        render.echo_json(answer)
    else:
        _show(points, varied)
    if all(point.prediction is None for point in points):
        raise typer.Exit(2)


def answer_points(asked: Asked, varied: Mapping[str, Sequence[Any]], *, advance: Any = None) -> Iterator[Point]:
    """Answer the question at every combination, the last field varying fastest.

    Raises
    ------
    MoecastError
        More points than `MOST_POINTS`.
    """
    import math

    from moecast.errors import MoecastError

    count = math.prod(map(len, varied.values()))
    if count > MOST_POINTS:
        raise MoecastError(f"{count} points, more than {MOST_POINTS}", field="--vary")
    read: dict[Asked, Inputs] = {}
    for done, values in enumerate(itertools.product(*varied.values()), 1):
        changed = dict(zip(varied, values, strict=True))
        found = {dotted(name): value for name, value in changed.items()}
        try:
            yield Point(values=found, prediction=_answer(asked.with_(**changed), read))
        except MoecastError as error:
            yield Point(values=found, refused=str(error))
        if advance is not None:
            advance(done, count)


def _answer(asked: Asked, read: dict[Asked, Inputs]) -> Prediction:
    """Answer one point; `read` keeps the last inputs, which the next points may share."""
    from moecast.cli.inputs import read_inputs, read_question
    from moecast.sim import simulate_question

    key = asked.with_(**dict.fromkeys(OF_THE_PLAN))
    if key not in read:
        read.clear()
        read[key] = read_inputs(asked, quiet=True)
    return simulate_question(read_question(asked, read[key]))


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
    for name in (*points[0].values, "step", "80 %", "tokens/s per GPU", "balance", "fits", "limited by"):
        table.add_column(Text(name), justify="right", overflow="fold")
    for point in points:
        values = ["-" if value is None else str(value) for value in point.values.values()]
        table.add_row(*map(Text, (*values, *_answers(point))))
    out.print(table)
    told = tuple(f"override: {option(name)} " for name in varied)  # its column says it
    for grounds in _counted([[grounds_text(prediction.rests_on)] for prediction in found]):
        out.print(grounds, markup=False)
    said = [[line for line in prediction.warnings if not line.startswith(told)] for prediction in found]
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
    return [format_s(time_s), between, rate, f"{found.balance:.2f}", fits, found.bottleneck or "-"]


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
