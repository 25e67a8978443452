"""Reading the field names that model families use in a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.sim.attention_shape import AttentionShape

_MISSING = object()


class _Reader:
    """Typed look-ups that name the file and the field when they fail."""

    def __init__(self, config: Mapping[str, Any], file: str | Path | None) -> None:
        self.config, self.file = config, file

    def error(self, rule: str, field: str, value: object = None) -> MoecastError:
        return MoecastError(rule, file=self.file, field=field, value=value)

    def integer(self, field: str, default: Any = _MISSING, *, least: int = 1) -> int:
        """Read a whole number of at least `least`; `default` where the field is absent or null."""
        value = self.config.get(field)
        if value is None:
            if default is _MISSING:
                raise self.error("missing", field)
            return int(default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**40:
            raise self.error(f"must be a whole number of at least {least}", field, value)
        return value

    def either(self, field: str, other: str) -> int:
        """Read a whole number that goes by one of two names: transformers 5 writes some under another than 4 did."""
        return self.integer(other if self.config.get(field) is None and self.config.get(other) is not None else field)

    def flag(self, field: str, default: bool) -> bool:
        """Read a boolean."""
        value = self.config.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error("must be true or false", field, value)
        return value

    def items(self, field: str, kind: type, default: list[Any] | None = None) -> list[Any] | None:
        """Read a list of `kind`."""
        value = self.config.get(field)
        if value is None:
            return default
        if not isinstance(value, list) or not all(isinstance(v, kind) and not isinstance(v, bool) for v in value):
            raise self.error(f"must be a list of {kind.__name__}", field, value)
        return value


def shape_fields(config: Mapping[str, Any], *, file: str | Path | None = None) -> dict[str, Any]:
    """Read the fields of a ModelShape, its name left out.

    Raises
    ------
    MoecastError
        An architecture that is not known, or a field that is missing or wrong.
    """
    reader = _Reader(config, file)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise reader.error("missing" if model_type is None else "must be a string", "model_type", model_type)
    family = FAMILIES.get(model_type)
    if family is None:
        raise reader.error(f"unknown architecture; known: {', '.join(FAMILIES)}", "model_type", model_type)
    try:
        fields = family(reader)
    except ValueError as error:  # AttentionShape checks how its sizes fit each other
        raise MoecastError(str(error), file=file, field="attention") from error
    weight_type, dense_type = _types(reader)
    return {
        "hidden": reader.integer("hidden_size"),
        "n_layers": reader.integer("num_hidden_layers"),
        "choices": reader.integer("num_experts_per_tok"),
        "vocab": reader.integer("vocab_size"),
        "tied_embedding": reader.flag("tie_word_embeddings", False),
        "weight_type": weight_type,
        "dense_type": dense_type,
        **fields,
    }


def _mixtral(reader: _Reader) -> dict[str, Any]:
    return {
        "experts": reader.either("num_local_experts", "num_experts"),
        "expert_intermediate": reader.integer("intermediate_size"),
        "moe_layer_ids": _all_layers(reader),
        "attention": _heads(reader, windowed=_all_layers(reader)),
    }


def _olmoe(reader: _Reader) -> dict[str, Any]:
    return {
        "experts": reader.either("num_experts", "num_local_experts"),
        "expert_intermediate": reader.integer("intermediate_size"),
        "moe_layer_ids": _all_layers(reader),
        "attention": _heads(reader),
    }


def _qwen(reader: _Reader) -> dict[str, Any]:
    period = reader.integer("decoder_sparse_step", 1)
    dense = set(reader.items("mlp_only_layers", int, []) or [])
    moe = tuple(i for i in _all_layers(reader) if i not in dense and (i + 1) % period == 0)
    shared = reader.integer("shared_expert_intermediate_size", 0, least=0)
    windowed = _all_layers(reader) if reader.flag("use_sliding_window", False) else ()
    return {
        "experts": reader.either("num_experts", "num_local_experts"),
        "expert_intermediate": reader.integer("moe_intermediate_size"),
        "moe_layer_ids": moe,
        "dense_intermediate": _dense_width(reader, moe),
        "shared_experts": int(shared > 0),
        "shared_intermediate": shared,
        "attention": _heads(reader, windowed=windowed),
    }


def _deepseek_moe(reader: _Reader) -> dict[str, Any]:
    """Read DeepSeekMoE with plain attention: GLM-4-MoE, and what `moecast capture train` makes."""
    return {**_deepseek_layers(reader), "attention": _heads(reader)}


def _deepseek(reader: _Reader) -> dict[str, Any]:
    return {**_deepseek_layers(reader), "attention": _latent(reader)}


def _deepseek_layers(reader: _Reader) -> dict[str, Any]:
    first, period = reader.integer("first_k_dense_replace", 0, least=0), reader.integer("moe_layer_freq", 1)
    moe = tuple(i for i in _all_layers(reader) if i >= first and i % period == 0)
    shared, width = reader.integer("n_shared_experts", 0, least=0), reader.integer("moe_intermediate_size")
    return {
        "experts": reader.either("n_routed_experts", "num_local_experts"),
        "expert_intermediate": width,
        "moe_layer_ids": moe,
        "dense_intermediate": _dense_width(reader, moe),
        "shared_experts": shared,
        "shared_intermediate": shared * width,
    }


def _gpt_oss(reader: _Reader) -> dict[str, Any]:
    types = reader.items("layer_types", str)
    layers = _all_layers(reader)
    if types is None:  # the family alternates, sliding first
        types = ["full_attention" if i % 2 else "sliding_attention" for i in layers]
    if len(types) != len(layers):
        raise reader.error(f"must have {len(layers)} entries, one per layer", "layer_types", len(types))
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise reader.error("must be full_attention or sliding_attention", "layer_types", kind)
    return {
        "experts": reader.either("num_local_experts", "num_experts"),
        "expert_intermediate": reader.integer("intermediate_size"),
        "moe_layer_ids": layers,
        "attention": _heads(reader, windowed=tuple(i for i in layers if types[i] == "sliding_attention")),
    }


FAMILIES: Mapping[str, Callable[[_Reader], dict[str, Any]]] = {
    "mixtral": _mixtral,
    "granitemoe": _mixtral,
    "minimax_m2": _mixtral,
    "phimoe": _mixtral,
    "deepseek": _deepseek_moe,
    "glm4_moe": _deepseek_moe,
    "moecast-capture": _deepseek_moe,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "qwen2_moe": _qwen,
    "qwen3_moe": _qwen,
    "olmoe": _olmoe,
    "gpt_oss": _gpt_oss,
}
"""`model_type` of the config to the function that reads its family's own fields."""


def _all_layers(reader: _Reader) -> tuple[int, ...]:
    layers = reader.integer("num_hidden_layers")
    if layers > 4096:
        raise reader.error("must be at most 4096", "num_hidden_layers", layers)
    return tuple(range(layers))


def _dense_width(reader: _Reader, moe: tuple[int, ...]) -> int:
    return reader.integer("intermediate_size") if len(moe) < reader.integer("num_hidden_layers") else 0


def _latent(reader: _Reader) -> AttentionShape:
    heads, rope = reader.integer("num_attention_heads"), reader.integer("qk_rope_head_dim")
    return AttentionShape(
        kind="mla",
        heads=heads,
        kv_heads=heads,
        head_dim=reader.integer("qk_nope_head_dim") + rope,
        value_dim=reader.integer("v_head_dim"),
        q_rank=reader.integer("q_lora_rank", 0, least=0),
        kv_rank=reader.integer("kv_lora_rank"),
        rope_dim=rope,
    )


def _heads(reader: _Reader, *, windowed: tuple[int, ...] = ()) -> AttentionShape:
    """Multi-head or grouped-query attention; `windowed` layers slide if the config has a window."""
    heads = reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", heads)
    width = reader.integer("head_dim", reader.integer("hidden_size") // heads)
    window = reader.integer("sliding_window", 0, least=0) or None
    return AttentionShape(
        kind="mha" if kv_heads == heads else "gqa",
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        value_dim=width,
        window=window if windowed else None,
        windowed_layers=windowed if window else (),
    )


def _types(reader: _Reader) -> tuple[str, str]:
    """Element types of the experts and of the other matrices."""
    value = reader.config.get("quantization_config")
    if value is None:
        return "bf16", "bf16"
    method = value.get("quant_method") if isinstance(value, Mapping) else None
    if method == "fp8":
        block = value.get("weight_block_size", [128, 128])
        if block != [128, 128]:
            raise reader.error("must be [128, 128]", "quantization_config.weight_block_size", block)
        return "fp8", "fp8"
    if method == "mxfp4":
        return "mxfp4", "bf16"
    raise reader.error("must be fp8 or mxfp4", "quantization_config.quant_method", method)
