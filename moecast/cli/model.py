"""``moecast model``: what a config says of a model, in shapes, parameters and bytes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moecast.cli import options

if TYPE_CHECKING:
    from moecast.sim import ModelShape

app = typer.Typer(no_args_is_help=True, help="Models: what a config.json or a preset says of one.")


@app.command("list")
def list_command(json: options.Json = False, seed: options.Seed = 0) -> None:  # noqa: ARG001  as of every command
    """List the presets.

    Example: moecast model list
    """
    from moecast.cli import render
    from moecast.sim import list_models, load_model

    models = [load_model(name) for name in list_models()]
    if json:
        render.echo_json([_values(model) for model in models])
        return
    table = _table("preset", "L×E×K", "parameters", "active", "attention", "experts")
    for model in models:
        sizes = f"{model.layers}×{model.experts}×{model.choices}"
        counts = (f"{count / 1e9:.1f} B" for count in (model.total_parameters(), model.active_parameters()))
        table.add_row(model.name, sizes, *counts, _mixers(model), model.weight_type)
    render.console().print(table)


@app.command("show")
def show_command(
    model: Annotated[str, typer.Argument(help="A preset, a config.json, or a folder that holds one.", metavar="MODEL")],
    weight_type: options.WeightType = None,
    dense_type: options.DenseType = None,
    kv_type: options.KvType = None,
    seed: options.Seed = 0,  # noqa: ARG001  as of every command
    json: options.Json = False,
) -> None:
    """Show a model's shape, parameters (all, and those that a token meets), bytes by part and KV bytes per token.

    A `hf_quant_config.json` beside the config is read with it. What cannot be priced is refused by
    its field.

    Example: moecast model show deepseek-v3
    """
    from moecast.cli import render
    from moecast.cli.asked import ElementTypes
    from moecast.sim import load_model

    types = ElementTypes(weight_type=weight_type, dense_type=dense_type, kv_type=kv_type)
    shape = types.put_into(load_model(model))
    if json:
        render.echo_json(_values(shape))
        return
    from rich.markup import escape

    out = render.console()
    table = _table("", "", title=escape(shape.name))
    for name, text in _rows(shape):
        table.add_row(name, text)
    out.print(table)
    parts = _table("part", "parameters", "type", "bytes")
    for part in _parts(shape):
        parts.add_row(part["part"], f"{part['parameters'] / 1e9:.3f} B", part["type"], _gib(part["bytes"]))
    out.print(parts)


def _table(*columns: str, title: str | None = None) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _rows(model: ModelShape) -> list[tuple[str, str]]:
    grouped = f", in {model.groups_per_token} of {model.expert_groups} groups" if model.expert_groups > 1 else ""
    return [
        ("MoE layers × experts × choices", f"{model.layers}×{model.experts}×{model.choices}{grouped}"),
        ("hidden layers: MoE", f"{model.n_layers}: {_ranges(model.moe_layer_ids)}"),
        ("hidden, expert, dense width", f"{model.hidden}, {model.expert_intermediate}, {model.dense_intermediate}"),
        ("shared experts", f"{model.shared_experts}, {model.shared_intermediate} wide in all"),
        ("attention", _mixers(model)),
        ("vocabulary", f"{model.vocab}, {'tied to' if model.tied_embedding else 'apart from'} the LM head"),
        ("parameters", f"{model.total_parameters() / 1e9:.2f} B"),
        ("active per token", f"{model.active_parameters() / 1e9:.2f} B"),
        ("the same without the embedding", f"{model.active_parameters(embedding=False) / 1e9:.2f} B"),
        ("weights in all", _gib(sum(part["bytes"] for part in _parts(model)))),
        ("KV cache per token", f"{_kv_bytes(model):,} B, {model.kv_type}"),
        ("state per sequence", f"{_state_bytes(model):,} B" if _state_bytes(model) else "none"),
    ]


def _values(model: ModelShape) -> dict[str, Any]:
    return {
        "name": model.name,
        "layers": model.layers,
        "experts": model.experts,
        "choices": model.choices,
        "hidden": model.hidden,
        "hidden_layers": model.n_layers,
        "moe_layer_ids": list(model.moe_layer_ids),
        "expert_intermediate": model.expert_intermediate,
        "shared_experts": model.shared_experts,
        "shared_intermediate": model.shared_intermediate,
        "dense_intermediate": model.dense_intermediate,
        "expert_groups": model.expert_groups,
        "groups_per_token": model.groups_per_token,
        "attention": _counted(model),
        "weight_type": model.weight_type,
        "dense_type": model.dense_type,
        "attention_type": model.mixer_type,
        "kv_type": model.kv_type,
        "total_parameters": model.total_parameters(),
        "active_parameters": model.active_parameters(),
        "active_parameters_without_embedding": model.active_parameters(embedding=False),
        "parts": _parts(model),
        "kv_bytes_per_token": _kv_bytes(model),
        "state_bytes_per_sequence": _state_bytes(model),
    }


def _parts(model: ModelShape) -> list[dict[str, Any]]:
    """Parameters and bytes by part; they add up to the model."""
    return [
        {"part": part.part, "parameters": part.count, "type": part.element_type, "bytes": part.bytes}
        for part in model.parameters_by_part()
        if part.count
    ]


def _kv_bytes(model: ModelShape) -> int:
    return sum(map(model.kv_bytes_of, range(model.n_layers)))


def _state_bytes(model: ModelShape) -> int:
    return sum(map(model.state_bytes_of, range(model.n_layers)))


def _counted(model: ModelShape) -> dict[str, int]:
    """How many hidden layers have which kind, sliding and sparse ones apart."""
    return dict(Counter(_kind(model, layer) for layer in range(model.n_layers)))


def _kind(model: ModelShape, layer: int) -> str:
    from moecast.sim.attention_shape import LinearAttention

    mixer = model.mixer_of(layer)
    if mixer is None:
        return "none"
    if isinstance(mixer, LinearAttention):
        return mixer.kind
    heads = "" if mixer.heads == model.attention.heads else f", {mixer.heads} heads"
    keys = "" if mixer.own_kv else ", another layer's keys"
    if mixer.compress:
        most = f"{mixer.sparse_keys} " if mixer.sparse_keys else ""
        return f"{mixer.kind}{heads}, window {mixer.window} + {most}keys of {mixer.compress} tokens"
    if (window := mixer.window_of(layer)) is not None:
        return f"{mixer.kind}{heads}, window {window}{keys}"
    return f"{mixer.kind}{heads}, {mixer.sparse_keys} keys" if mixer.sparse_keys else f"{mixer.kind}{heads}{keys}"


def _mixers(model: ModelShape) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in _counted(model).items() if kind != "none")


def _ranges(ids: tuple[int, ...]) -> str:
    """``3–60`` or ``1, 3, 5, …`` of rising numbers."""
    if ids[-1] - ids[0] == len(ids) - 1:
        return f"{ids[0]}–{ids[-1]}"
    return ", ".join(map(str, ids[:6])) + (", …" if len(ids) > 6 else "")


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB ({size / 1e9:,.1f} GB)"
