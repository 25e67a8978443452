"""``moecast trace import``: read routing that other tools recorded."""

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
