"""`moecast capture`: record the routing of a model that is run here."""

from __future__ import annotations

import typer

from moecast.cli.capture_hf import hf_command
from moecast.cli.capture_train import train_command

app = typer.Typer(no_args_is_help=True, help="Record the routing of a model that is run here (needs torch).")
app.command("hf")(hf_command)
app.command("train")(train_command)


@app.callback()
def _group() -> None:
    pass
