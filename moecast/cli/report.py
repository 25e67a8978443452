"""``moecast report``: an HTML page from saved predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moecast.cli import options


def report_command(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Predictions (`simulate --out`), a comparison (`demo`), or one search (`plan --out`), as JSON.",
            metavar="FILE...",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[
        str | None, typer.Option("--title", help="The page's heading.", show_default="the comparison's own")
    ] = None,
    seed: options.Seed = 0,  # noqa: ARG001  every command takes one; nothing here is random
    json: options.Json = False,
) -> None:
    """Write one self-contained HTML page: tables, breakdown, load, links and memory, side by side.

    The page asks the network for nothing.

    Example: moecast report contiguous.json best.json --out report.html
    """
    from rich.markup import escape

    from moecast.cli import render
    from moecast.cli.saved_plan import is_saved_plan, write_saved_plan_page
    from moecast.files import check_outputs
    from moecast.report import read_comparison, write_report

    check_outputs({"--out": out}, {str(file): file for file in files})
    if len(files) == 1 and is_saved_plan(files[0]):
        write_saved_plan_page(files[0], out)
        if json:
            render.echo_json({"report": str(out), "predictions": 0})
        else:
            render.console().print(f"the search of layouts in [bold]{escape(str(out))}[/bold]")
        return
    with render.progress("drawing", quiet=json):
        comparison = read_comparison(files, title=title)
        write_report(comparison, out)
    if json:
        render.echo_json({"report": str(out), "predictions": len(comparison.entries)})
    else:
        render.console().print(f"{len(comparison.entries)} predictions in [bold]{escape(str(out))}[/bold]")
