"""``moecast trace``: look at routing traces, import them, count them, hand them to other readers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moecast.cli import options
from moecast.cli.plain import say
from moecast.cli.trace_import import import_command
from moecast.cli.trace_stats import stats_command
from moecast.cli.trace_synth import synth_command

if TYPE_CHECKING:
    pass

app = typer.Typer(no_args_is_help=True, help="Routing traces: info, import, stats, synth, export.")
app.command("import")(import_command)
app.command("stats")(stats_command)
app.command("synth")(synth_command)


@app.command("info")
def info_command(
    trace: options.TraceArgument,
    content_hash: Annotated[bool, typer.Option("--hash", help="Compute the content hash: reads all of it.")] = False,
    seed: options.Seed = 0,  # noqa: ARG001  every command takes one; nothing here is random
    json: options.Json = False,
) -> None:
    """Print what a trace holds and where it comes from: sizes, provenance, phases, topics, sequences.

    Example: moecast trace info t.parquet
    """
    from moecast.cli import render
    from moecast.cli import trace_tables as tables
    from moecast.traces import describe_trace, hash_trace

    with render.progress("reading", quiet=json) as advance:
        info = describe_trace(trace, progress=advance)
        digest = hash_trace(trace, progress=advance) if content_hash else None
    if json:
        render.echo_json({**tables.info_json(info), "content_hash": digest})
    else:
        render.console().print(tables.info_table(str(trace), info, digest), tables.parts_table(info))


@app.command("export")
def export_command(
    trace: options.TraceArgument,
    out: Annotated[Path, typer.Option("--out", help="The .parquet file to write.", show_default=False)],
    lists: Annotated[bool, typer.Option("--lists", help="Choices as Parquet lists, empty ones null.")] = True,  # noqa: ARG001  the only form there is
    seed: options.Seed = 0,  # noqa: ARG001  every command takes one; nothing here is random
    json: options.Json = False,
) -> None:
    """Copy a trace for readers that do not know fixed-size binary, such as data frames and SQL engines.

    Example: moecast trace export t.parquet --lists --out lists.parquet
    """
    from moecast.cli import render
    from moecast.errors import MoecastError
    from moecast.files import check_outputs
    from moecast.traces import export_lists

    if out.suffix != ".parquet":
        raise MoecastError("what is written is Parquet: name it so", field="--out", value=str(out))
    check_outputs({"--out": out}, {"the trace": trace})
    with render.progress("exporting", quiet=json) as advance:
        tokens = export_lists(trace, out, progress=advance)
    if json:
        render.echo_json({"out": str(out), "tokens": tokens, "file_bytes": out.stat().st_size})
    else:
        say(f"{tokens} tokens written to {out}")
