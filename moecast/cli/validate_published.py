"""``moecast validate published``: what others measured beside the forecast, family by family, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moecast.cli import options

if TYPE_CHECKING:
    from moecast.validate.published.answers import FamilyErrors, RowAnswer
    from moecast.validate.published.door import Published


def published_command(
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="More files, as of --rows.", show_default=False)
    ] = None,
    *,
    rows: Annotated[
        list[Path] | None,
        typer.Option(
            "--rows",
            help="Ask the rows of these files instead: serving runs or training steps, in the "
            "columns of those that ship; columns may be empty or absent.",
            show_default="the rows that ship",
        ),
    ] = None,
    tables: Annotated[
        Path | None,
        typer.Option("--tables", help="Also a folder of measured kernels: GPU/family/engine/version/*.parquet."),
    ] = None,
    only: Annotated[str, typer.Option("--only", help="Rows whose id holds this text.")] = "",
    network: Annotated[str, typer.Option("--network", help="The rung of serving and training rows.")] = "bound",
    requests: Annotated[
        bool, typer.Option("--requests", help="Run serving rows request by request, too; minutes for all that ship.")
    ] = False,
    every_row: Annotated[bool, typer.Option("--every-row", help="Print each row, too.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write families and rows here, as JSON.")] = None,
    seed: options.Seed = 0,  # noqa: ARG001  as of every command; the rows' routing is made with a seed of its own
    json: options.Json = False,
) -> None:
    """Hold the forecast against what others measured: rows asked, answered, fitted, and how far off the others are.

    Errors are of times, over rows on which nothing was fitted. Where all that ships is asked,
    families of kernels (without --tables) and of requests (without --requests) have the errors that
    ship.

    Example: moecast validate published --rows serving.csv --only h200_trtllm
    """
    import json as json_module

    from moecast.cli import render
    from moecast.files import check_outputs, write_text
    from moecast.validate.published.door import ask_published

    files = [*(rows or ()), *(more or ())] or None
    named = {f"row file {number}": file for number, file in enumerate(files or (), 1)}
    check_outputs({"--out": out}, dict(named))
    with render.progress("asking", quiet=json) as advance:
        found = ask_published(files, tables=tables, only=only, network=network, requests=requests, progress=advance)
    if out is not None:
        write_text(out, json_module.dumps(found.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    if json:
        render.echo_json(found.to_json())
    else:
        _show(found, every_row=every_row)


def _show(found: Published, *, every_row: bool) -> None:
    from rich.markup import escape

    from moecast.cli import render

    out = render.console()
    if every_row:
        out.print(_row_table(found.rows))
    out.print(_family_table(found))
    if found.not_asked:
        out.print(f"not asked now, errors that ship: {', '.join(found.not_asked)}", markup=False, highlight=False)
    out.print("median, p90: of the size of the relative error of the time, rows that may have set parameters left out")
    for gpu in found.unknown_gpus:
        out.print(f"not judged: tables of {escape(gpu)}, a GPU whose peaks nobody here knows")
    reasons: dict[str, list[str]] = {}
    for row in found.rows:
        if row.why:
            reasons.setdefault(row.why, []).append(row.id)
    for why, ids in reasons.items():
        out.print(f"not answered, {len(ids)}, as {escape(ids[0])}: {escape(why)}")


def _family_table(found: Published) -> object:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Forecasts of what others measured", title_justify="left", title_style="bold")
    table.add_column("family")
    for name in ("asked", "answered", "fitted", "median", "p90", "bias"):
        table.add_column(name, justify="right")
    for family in found.families:
        table.add_row(escape(family.name), *_cells(family), style="bold")
        own = [part for name, part in found.parts if name == family.name]
        for part in own if len(own) > 1 else ():
            table.add_row(f"  {escape(part.name)}", *_cells(part))
    return table


def _cells(errors: FamilyErrors) -> list[str]:
    counts = [f"{value:,}" for value in (errors.asked, errors.answered, errors.fitted)]
    sizes = ["-" if value is None else f"{value:.1%}" for value in (errors.median, errors.p90)]
    return [*counts, *sizes, "-" if errors.bias is None else f"{errors.bias:+.1%}"]


def _row_table(rows: tuple[RowAnswer, ...]) -> object:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Rows", title_justify="left", title_style="bold")
    for name in ("row", "use"):
        table.add_column(name, overflow="fold")
    for name in ("published", "predicted", "error", "80 %"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in rows:
        numbers = ["-" if value is None else f"{value:,.4g}" for value in (row.published, row.predicted)]
        between = "-" if row.low is None or row.high is None else f"{row.low:,.4g} to {row.high:,.4g}"
        error = "-" if row.error is None else f"{row.error:+.1%}"
        table.add_row(escape(row.id), row.use, *numbers, error, between, escape(row.why or row.note))
    return table
