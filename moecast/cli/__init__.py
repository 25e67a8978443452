"""The command line: one file a command, each importing what it needs only when it runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from moecast.cli import capture, collective, demo, model, place, report, simulate, topology, trace, validate
from moecast.errors import MoecastError

app = typer.Typer(
    name="moecast",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Forecast what a Mixture-of-Experts model's routing costs on a GPU cluster, place its experts, "
    "check the forecast.\n\nStart with [bold]moecast demo[/bold].",
)
app.add_typer(topology.app, name="topology")
app.add_typer(model.app, name="model")
app.add_typer(trace.app, name="trace")
app.add_typer(capture.app, name="capture")
app.command("simulate")(simulate.simulate_command)
app.command("place")(place.place_command)
app.command("validate")(validate.validate_command)
app.command("collective")(collective.collective_command)
app.command("report")(report.report_command)
app.command("demo")(demo.demo_command)


def _version(asked: bool) -> None:
    if asked:
        from moecast import __version__

        typer.echo(f"moecast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; bad input, or what the system refuses, is one line on stderr and exit code 2."""
    try:
        app()
    except MoecastError as error:
        typer.echo(f"moecast: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be searched, a name that is too long
        where = "" if error.filename is None else f"{error.filename}: "
        typer.echo(f"moecast: {where}{error.strerror or ' '.join(str(error).split())}", err=True)
        sys.exit(2)
