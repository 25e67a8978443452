"""`moecast capture train`: train a small MoE model here and record its routing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def train_command(
    out: Annotated[Path, typer.Option("--out", help="The trace to write, a .parquet file.", show_default=False)],
    size: Annotated[str, typer.Option("--size", help="cpu (as shipped), gpu or tiny.")] = "cpu",
    text: Annotated[
        Path | None,
        typer.Option("--text", help="A folder of <topic>/<file>.", show_default="Debian packages"),
    ] = None,
    cache: Annotated[Path, typer.Option("--cache", help="Packages and checkpoints.")] = Path(
        "~/.cache/moecast/capture"
    ),
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads of torch.", show_default="torch's own choice")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Training steps.", show_default="as the size says")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", help="End training early, so that it takes about this long.", show_default="no limit"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Decides weights, order and sampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Train a small MoE language model from scratch and record its routing on text it never read.

    Example: moecast capture train --size tiny --text my-texts --out trace.parquet
    """
    from moecast.errors import MoecastError

    try:
        from moecast.traces.capture.own import summary
        from moecast.traces.capture.own.options import sized
        from moecast.traces.capture.own.run import run
    except ModuleNotFoundError as error:
        raise MoecastError(f'capture needs {error.name}; pip install "moecast[torch]"') from error
    outcome = run(
        out,
        size=sized(size, seed=seed, steps=steps, minutes=minutes),
        cache=cache.expanduser(),
        text=text,
        device=device,
        threads=threads,
    )
    typer.echo(json.dumps(summary.as_json(outcome), indent=2) if as_json else summary.as_text(outcome))
