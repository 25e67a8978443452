"""``moecast trace``: look at routing traces, import them, count them, hand them to other readers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moecast.cli import options

if TYPE_CHECKING:
    from moecast.sim import ModelShape
    from moecast.traces import RoutingTrace

app = typer.Typer(no_args_is_help=True, help="Routing traces: info, import, stats, export.")


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


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="NumPy arrays \\[tokens, layers, choices] as .npz, one per topic.")],
    out: Annotated[
        Path, typer.Option("--out", help="A .parquet file, or a new folder for shards.", show_default=False)
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="A preset, or any name.", show_default="the file's name")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="The model's config.json: gives E and the layers' ids.", show_default="the preset's"
        ),
    ] = None,
    phase: Annotated[
        str, typer.Option("--phase", help="The phase of its tokens: train, prefill or decode.")
    ] = "prefill",
    experts: Annotated[
        int | None,
        typer.Option("--experts", min=1, max=65535, help="E.", show_default="the model's, else the highest id + 1"),
    ] = None,
    note: Annotated[str, typer.Option("--note", help="Free text to keep with the trace.")] = "",
    seed: options.Seed = 0,  # noqa: ARG001  every command takes one; nothing here is random
    json: options.Json = False,
) -> None:
    """Read routing recorded elsewhere and write it as a moecast trace.

    <topic>_seqlen arrays give the lengths of a topic's sequences. What the file does not say stays unknown.

    Example: moecast trace import deepseek-v2-lite.npz --model deepseek-v2-lite --out t.parquet
    """
    from moecast.cli import render
    from moecast.cli import trace_tables as tables
    from moecast.errors import MoecastError
    from moecast.traces import PHASES, ImportOptions, check_target, describe_trace, import_trace, write_trace

    if phase not in PHASES:
        raise MoecastError(f"one of {', '.join(PHASES)}", field="--phase", value=phase)
    check_target(out)
    known = _known_model(model, config)
    with render.progress("importing", quiet=json) as advance:
        asked = ImportOptions(
            model=model,
            phase=phase,
            experts=experts or (known.shape.experts if known.shape else None),
            config=known.config,
            source=known.source,
            notes=note,
            progress=advance,
        )
        imported = import_trace(file, asked)
    if known.shape is not None:
        imported = _with_layer_ids(imported, known.shape, file)
    write_trace(imported, out)
    info = describe_trace(out)
    if json:
        render.echo_json({**tables.info_json(info), "out": str(out), "content_hash": imported.content_hash()})
    else:
        render.console().print(tables.info_table(str(out), info, imported.content_hash()), tables.parts_table(info))


@app.command("stats")
def stats_command(
    trace: options.TraceArgument,
    ranks: Annotated[
        int | None,
        typer.Option(
            "--ranks",
            min=1,
            help="Count balance, fan-out and crossings for experts in order on so many ranks.",
            show_default="8, or E where it is less",
        ),
    ] = None,
    phase: Annotated[
        str | None, typer.Option("--phase", help="Only train, prefill or decode.", show_default="all")
    ] = None,
    topics: Annotated[str | None, typer.Option("--topics", help="Only these: law,code.", show_default="all")] = None,
    part: Annotated[
        str, typer.Option("--part", help="all, planning or measuring: which part of the trace (see --plan-on).")
    ] = "all",
    plan_on: options.PlanOn = 0.5,
    seed: options.Seed = 0,  # noqa: ARG001  every command takes one; nothing here is random
    json: options.Json = False,
) -> None:
    """Count load, balance, fan-out and crossings under the contiguous placement, over all tokens and by layer.

    Example: moecast trace stats t.parquet --ranks 8 --part measuring
    """
    from moecast.cli import render
    from moecast.cli import trace_tables as tables
    from moecast.cli.inputs import PARTS
    from moecast.errors import MoecastError
    from moecast.traces import contiguous_ranks_LE, count_tokens, iter_trace, read_meta, read_trace, trace_stats

    if part not in PARTS:
        raise MoecastError(f"one of {', '.join(PARTS)}", field="--part", value=part)
    meta = read_meta(trace)
    ranks = min(8, meta.experts) if ranks is None else ranks
    if ranks > meta.experts:
        raise MoecastError(f"the trace has {meta.experts} experts per layer", field="--ranks", value=ranks)
    if not count_tokens(trace):
        raise MoecastError("holds no tokens", file=trace)
    wanted = None if topics is None else [name.strip() for name in topics.split(",")]
    with render.progress("counting", quiet=json) as advance:
        if part == "all" and phase is None and wanted is None:
            source: Any = iter_trace(trace, progress=advance)
        else:
            whole = read_trace(trace, phase=phase, topics=wanted, progress=advance)
            source = whole if part == "all" else whole.split(plan_on)[PARTS.index(part) - 1]
        counted = trace_stats(source, rank_of_expert_LE=contiguous_ranks_LE(meta, ranks), n_ranks=ranks)
    if json:
        render.echo_json(tables.stats_json(meta, counted, ranks))
    else:
        render.console().print(tables.stats_table(meta, counted, ranks), tables.layers_table(meta, counted))


@app.command("export")
def export_command(
    trace: options.TraceArgument,
    out: Annotated[Path, typer.Option("--out", help="The .parquet file to write.", show_default=False)],
    lists: Annotated[bool, typer.Option("--lists", help="Choices as Parquet lists, empty ones null.")] = True,
    seed: options.Seed = 0,  # noqa: ARG001  every command takes one; nothing here is random
    json: options.Json = False,
) -> None:
    """Copy a trace for readers that do not know fixed-size binary, such as data frames and SQL engines.

    Example: moecast trace export t.parquet --lists --out lists.parquet
    """
    from moecast.cli import render
    from moecast.errors import MoecastError
    from moecast.files import check_writable
    from moecast.traces import export_lists

    if not lists:
        raise MoecastError("the only export there is", field="--lists")
    check_writable(out)
    with render.progress("exporting", quiet=json) as advance:
        tokens = export_lists(trace, out, progress=advance)
    if json:
        render.echo_json({"out": str(out), "tokens": tokens, "file_bytes": out.stat().st_size})
    else:
        typer.echo(f"{tokens} tokens written to {out}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What `--model` and `--config` say: the model's shape, its raw config.json, and where that was found."""

    shape: ModelShape | None = None
    config: Mapping[str, Any] | None = None
    source: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _known_model(model: str | None, config: Path | None) -> _Known:
    import json

    from moecast.files import read_text
    from moecast.sim import ModelShape
    from moecast.sim.models import PRESETS

    if config is not None:
        file = config / "config.json" if config.is_dir() else config
        shape = ModelShape.from_config(file, name=model)
        return _Known(shape=shape, config=json.loads(read_text(file)), source={"config": file.name})
    if model is not None and model in PRESETS:
        raw = dict(PRESETS[model].config)
        shape = ModelShape.from_config(raw, name=model)
        return _Known(shape=shape, config=raw, source={"config": f"moecast preset {model}"})
    return _Known()


def _with_layer_ids(trace: RoutingTrace, shape: ModelShape, file: Path) -> RoutingTrace:
    """The trace with the model's layer ids, when its L, E and K are the model's."""
    from moecast.errors import MoecastError

    for field in ("layers", "experts", "choices"):
        theirs, ours = getattr(trace.meta, field), getattr(shape, field)
        if theirs != ours:
            raise MoecastError(f"the model {shape.name} has {ours}", file=file, field=field, value=theirs)
    return dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, layer_ids=shape.moe_layer_ids))
