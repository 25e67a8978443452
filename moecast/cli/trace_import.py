"""``moecast trace import``: read routing that engines and other tools recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moecast.cli import options
from moecast.cli.plain import say

if TYPE_CHECKING:
    from moecast.sim.configs.moe_sizes import MoeSizes
    from moecast.traces import ImportedTrace, LoadTable, TraceMeta


FORMATS = ("auto", "npz", "vllm", "sglang", "megatron", "trtllm", "vllm-routes", "routes-json", "table")


def import_command(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="What an engine recorded, one file or several that belong together (ranks, requests), or its folder.",
            metavar="FILE...",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="A .parquet file, or a new folder for shards; a .json file where the files hold counts only.",
            show_default=False,
        ),
    ],
    file_format: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = "auto",
    model: Annotated[
        str | None, typer.Option("--model", help="A preset, or any name.", show_default="the first file's name")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="The model's config.json: gives E, K and which layers are MoE layers.",
            show_default="the preset's",
        ),
    ] = None,
    phase: Annotated[
        str | None,
        typer.Option(
            "--phase",
            help="The phase of tokens whose phase the files do not say: train, prefill or decode.",
            show_default="train for megatron, else prefill",
        ),
    ] = None,
    experts: Annotated[
        int | None,
        typer.Option(
            "--experts", min=1, max=65535, help="E.", show_default="the file's, the model's, else the highest id + 1"
        ),
    ] = None,
    choices: Annotated[
        int | None,
        typer.Option("--choices", min=1, max=1024, help="K.", show_default="the file's, else the model's"),
    ] = None,
    first_layers: Annotated[
        str | None,
        typer.Option(
            "--first-layers",
            help="Megatron-Core, to join pipeline stages: for each FILE the model's layer from which its stage counts.",
            metavar="N,N,...",
            show_default="the files are of one stage",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            help="A flat table of another layout (.npz, JSON lines, .csv, Parquet): which of its "
            "columns holds what. NAME is expert, layer, position, sequence, slot, weight, "
            "token_id, step, source_rank, phase or topic.",
            metavar="NAME=COLUMN,...",
            show_default="a known layout's",
        ),
    ] = None,
    drop_first: Annotated[
        int, typer.Option("--drop-first", min=0, help="Leave out so many rows (tokens) at the start: a warm-up's.")
    ] = 0,
    drop_dummies: Annotated[
        bool, typer.Option("--drop-dummies", help="Leave out runs of equal rows that the rest would not make.")
    ] = False,
    note: Annotated[str, typer.Option("--note", help="Free text to keep with the trace.")] = "",
    seed: options.Seed = 0,  # noqa: ARG001  every command takes one; nothing here is random
    json: options.Json = False,
) -> None:
    """Read routing that an engine recorded, and write it as a moecast trace, or as a load table if it is counts only.

    What the files do not say stays unknown. docs/traces.md lists the engines, docs/import.md says
    what to know of each.

    Example: moecast trace import responses.jsonl --model qwen3-30b-a3b --out t.parquet
    """
    from moecast.cli import render
    from moecast.errors import MoecastError
    from moecast.files import check_apart, check_writable
    from moecast.traces import PHASES, ImportOptions, LoadTable, check_target, open_import, write_load_table

    if phase is not None and phase not in PHASES:
        raise MoecastError(f"one of {', '.join(PHASES)}", field="--phase", value=phase)
    if file_format not in FORMATS:
        raise MoecastError(f"one of {', '.join(FORMATS)}", field="--format", value=file_format)
    check_apart({"--out": out}, {str(file): file for file in files} | {"--config": config})
    (check_writable if out.suffix == ".json" else check_target)(out)
    known = _known_model(model, config)
    shape = known.shape
    with render.progress("importing", quiet=json) as advance:
        asked = ImportOptions(
            model=model,
            phase=phase,
            experts=experts or (shape.experts if shape else None),
            choices=choices or (shape.choices if shape else None),
            config=known.config,
            hidden_layers=shape.n_layers if shape else None,
            layer_ids=shape.moe_layer_ids if shape else None,
            first_layers=_numbers(first_layers),
            columns=_columns(columns),
            drop_first=drop_first,
            drop_dummies=drop_dummies,
            source=known.source,
            notes=note,
            progress=advance,
        )
        opened = open_import(files, asked, importer=file_format)
        _check_kind(opened, out)
        if choices is not None and opened.meta.choices != choices:
            rule = f"the files have {opened.meta.choices}"
            raise MoecastError(rule, field="--choices", value=choices)
        if shape is not None:
            _check_model(opened.meta, shape, files[0])
        if isinstance(opened, LoadTable):
            write_load_table(opened, out)
        else:
            _write(opened, out)
    if isinstance(opened, LoadTable):
        _show_table(opened, out, json=json)
    else:
        for warning in opened.warnings:
            say(f"warning: {warning}", err=True)
        _show_trace(out, json=json)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    """`0,12` as (0, 12)."""
    from moecast.errors import MoecastError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts):
        rule = "numbers with commas between, one for each FILE"
        raise MoecastError(rule, field="--first-layers", value=text)
    return tuple(int(part) for part in parts)


def _columns(text: str | None) -> dict[str, str] | None:
    """`expert=ids,layer=l` as {"expert": "ids", "layer": "l"}."""
    from moecast.errors import MoecastError

    if text is None:
        return None
    columns: dict[str, str] = {}
    for part in text.split(","):
        name, _, column = (side.strip() for side in part.partition("="))
        if not name or not column:
            rule = "must be NAME=COLUMN with commas between"
            raise MoecastError(rule, field="--columns", value=text)
        if name in columns:
            raise MoecastError(f"names {name} twice", field="--columns", value=text)
        columns[name] = column
    return columns


def _check_kind(opened: ImportedTrace | LoadTable, out: Path) -> None:
    """The name of what is written must fit what was found."""
    from moecast.errors import MoecastError
    from moecast.traces import LoadTable

    counts = isinstance(opened, LoadTable)
    if counts and out.suffix != ".json":
        rule = "the files hold counts only, which make a load table: name a .json file"
        raise MoecastError(rule, field="--out", value=str(out))
    if not counts and out.suffix == ".json":
        rule = "the files hold tokens, which make a trace: name a .parquet file or a new folder"
        raise MoecastError(rule, field="--out", value=str(out))


def _write(opened: ImportedTrace, out: Path) -> None:
    from moecast.traces import TraceWriter

    with TraceWriter(out, opened.meta) as writer:
        for batch in opened.read():
            writer.append(batch)


def _show_trace(out: Path, *, json: bool) -> None:
    from moecast.cli import render
    from moecast.cli import trace_tables as tables
    from moecast.traces import describe_trace, hash_trace

    with render.progress("reading what was written", quiet=json) as advance:
        info, digest = describe_trace(out, progress=advance), hash_trace(out)
    if json:
        render.echo_json({**tables.info_json(info), "out": str(out), "content_hash": digest})
    else:
        render.console().print(tables.info_table(str(out), info, digest), tables.parts_table(info))


def _show_table(table: LoadTable, out: Path, *, json: bool) -> None:
    from moecast.cli import render
    from moecast.cli.load_tables import load_json, load_view

    if json:
        render.echo_json({**load_json(table), "out": str(out)})
    else:
        render.console().print(load_view(str(out), table))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What `--model` and `--config` say: the MoE layers, the raw config.json, and where that was found."""

    shape: MoeSizes | None = None
    config: Mapping[str, Any] | None = None
    source: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _known_model(model: str | None, config: Path | None) -> _Known:
    if model is None and config is None:
        return _Known()  # the simulator, which knows models, takes a while to import

    from moecast.sim.configs.moe_sizes import MoeSizes
    from moecast.sim.models import PRESETS

    if config is not None:
        file = config / "config.json" if config.is_dir() else config
        raw = _read_config(file)
        shape = MoeSizes.from_config(raw, file=file, name=model or file.parent.resolve().name)
        return _Known(shape=shape, config=raw, source={"config": file.name})
    if model is not None and model in PRESETS:
        raw = dict(PRESETS[model].config)
        shape = MoeSizes.from_config(raw, name=model)
        return _Known(shape=shape, config=raw, source={"config": f"moecast preset {model}"})
    return _Known()


def _read_config(file: Path) -> dict[str, Any]:
    from moecast.errors import MoecastError
    from moecast.files import read_json

    raw = read_json(file)
    if not isinstance(raw, dict):
        raise MoecastError("must hold a JSON object", file=file)
    return raw


def _check_model(meta: TraceMeta, shape: MoeSizes, file: Path) -> None:
    """L, E and K must be the model's; of the layers a trace may have some, by their ids."""
    from moecast.errors import MoecastError

    for field in ("layers", "experts", "choices"):
        theirs, ours = getattr(meta, field), getattr(shape, field)
        some = field == "layers" and meta.layer_ids is not None and set(meta.layer_ids) <= set(shape.moe_layer_ids)
        if theirs != ours and not some:
            rule = f"the model {shape.name} has {ours}"
            raise MoecastError(rule, file=file, field=field, value=theirs)
