"""The command line: one file a command, each importing what it needs only when it runs."""

from __future__ import annotations

import errno
import signal
import sys
from typing import Annotated

import typer

from moecast.cli import (
    capture,
    collective,
    demo,
    model,
    place,
    plan,
    report,
    serve,
    simulate,
    sweep,
    topology,
    trace,
    train,
    validate,
)
from moecast.cli.plain import plain_streams, say
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
app.command("serve")(serve.serve_command)
app.command("sweep")(sweep.sweep_command)
app.command("train")(train.train_command)
app.command("place")(place.place_command)
app.command("plan")(plan.plan_command)
app.command("validate", cls=validate.ValidateCommand)(validate.validate_command)
app.command("collective")(collective.collective_command)
app.command("report")(report.report_command)
app.command("demo")(demo.demo_command)


def _version(asked: bool) -> None:
    if asked:
        from moecast import __version__

        say(f"moecast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


class _StoppedError(BaseException):
    """A signal that asks the process to end: like Ctrl-C, it unwinds, so that nothing partial is left."""

    def __init__(self, number: int) -> None:
        self.number = number


def _stop(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough
    raise _StoppedError(number)


def main() -> None:
    """Run the command line; bad input, or what the system refuses, is one line on stderr and exit code 2.

    SIGTERM and SIGHUP clean up like Ctrl-C and end with 128 + their number.
    """
    plain_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has SIGHUP ignored
            signal.signal(number, _stop)
    try:
        app()
    except _StoppedError as stopped:
        _say(f"stopped by {signal.Signals(stopped.number).name}")
        sys.exit(128 + stopped.number)
    except MoecastError as error:
        _say(str(error))
        sys.exit(2)
    except MemoryError:
        _say("this machine's memory does not hold what was asked: fewer steps, tokens or nodes need less")
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be searched, a name that is too long
        # what this program writes to files names them (`moecast.files`): what is left is standard
        # output
        unnamed = "standard output: " if error.errno == errno.ENOSPC else ""
        where = unnamed if error.filename is None else f"{error.filename}: "
        _say(f"{where}{error.strerror or ' '.join(str(error).split())}")
        sys.exit(2)


def _say(line: str) -> None:
    say(f"moecast: {line}", err=True)
