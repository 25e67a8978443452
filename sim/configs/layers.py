"""Which hidden layers of a model are MoE layers, dense ones, or neither: by all the ways in which configs say it.

Axes: L MoE layer.
"""

from __future__ import annotations

from typing import Any

from moecast.sim.configs.reader import MOST_LAYERS, Reader

LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
# What each layer is, and the words for a MoE layer and for a dense one: a list, or a string of
# letters (Nemotron-H).
KINDS: tuple[tuple[str, frozenset[Any], frozenset[Any]], ...] = (
    ("mlp_layer_types", frozenset({"sparse", "moe", "hash_moe"}), frozenset({"dense"})),
    ("layers_block_type", frozenset({"moe"}), frozenset({"mlp"})),
    ("hybrid_override_pattern", frozenset("E"), frozenset("-")),
    ("is_moe_layer", frozenset({True}), frozenset({False})),
    ("moe_layer_freq", frozenset({1}), frozenset({0})),
    ("moe_layer_layout", frozenset({1}), frozenset({0})),
)
FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "moe_layer_num_skipped")
PERIOD = ("moe_layer_freq", "decoder_sparse_step", "expert_layer_period", "moe_layer_interval")
SAID_BY = (
    *(field for field, _, _ in KINDS), *FIRST, *PERIOD, "moe_layers", "moe_layers_enum", "moe_layer_frequency",
    "interleave_moe_layer_step", "mlp_only_layers", "expert_layer_offset", "moe_layer_end_index",
)  # fmt: skip

# Classes whose layers all have experts, and that have no word for it.
EVERY_LAYER = frozenset({
    "mixtral", "olmoe", "flex_olmo", "granitemoe", "granitemoeshared", "granitemoe_swa", "granitemoehybrid", "phimoe",
    "minimax", "minimax_m1", "minimax_text_01", "minimax_m2", "gpt_oss", "jetmoe", "solar_open", "hunyuan_v1_moe",
    "qwen3_5_moe_text", "qwen3_5_moe", "qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text", "qwen3_omni_moe_text",
    "qwen3_next", "dbrx", "gemma4_text", "zaya", "kolibri1", "lara_mini", "aria_text", "doge", "grok-1",
    "openai_privacy_filter", "longcat_flash", "PanguProMoE", "hunyuan", "deepseek_v4",
})  # fmt: skip
# Classes that make the first layers dense where the config does not say which: how many.
FIRST_DENSE = {
    "glm_moe_dsa": 3, "deepseek_v32": 3, "axk1": 1, "axk2": 1, "glm4_moe_lite": 1, "mimo_v2_flash": 1, "hy_v3": 1,
    "hy_v4": 1, "kimi_linear": 1, "laguna": 1, "step3p5": 3, "beam": 3, "glm5_next_text": 3, "ernie4_5_vl_moe_text": 1,
    "dots3_note_text": 1, "mistral_large4_text": 1, "exaone_moe": 1, "flint": 2,
}  # fmt: skip


def hidden_layers(reader: Reader) -> int:
    """Count the hidden layers; a config that lists them need not count them (Nemotron-H).

    Raises
    ------
    MoecastError
        They are not counted, or too many.
    """
    listed = reader.get("layers_block_type")
    counted = reader.first(LAYERS)
    layers = len(listed) if isinstance(listed, list) and counted is None else reader.whole(LAYERS)
    if layers > MOST_LAYERS:
        raise reader.error(f"must be at most {MOST_LAYERS}", counted[0] if counted else "layers_block_type", layers)
    return layers


def moe_layers(reader: Reader, layers: int) -> tuple[int, ...]:
    """List the hidden layers with experts.

    Raises
    ------
    MoecastError
        The config does not say which, or names none.
    """
    ids = _moe_layers(reader, layers)
    if not ids:
        raise reader.error("names no MoE layer", (reader.first(SAID_BY) or ("num_hidden_layers", layers))[0])
    return ids


def no_mlp_layers(reader: Reader, layers: int) -> tuple[int, ...]:
    """List the hidden layers with neither experts nor an MLP: those of models whose layers are one block each."""
    for field, sparse, dense in KINDS[1:3]:
        listed = reader.listed((field,), layers)
        if listed is not None:
            return tuple(i for i, kind in enumerate(listed[1]) if kind not in sparse and kind not in dense)
    return ()


def _moe_layers(reader: Reader, layers: int) -> tuple[int, ...]:
    every = range(layers)
    for field, sparse, _ in KINDS:
        listed = reader.listed((field,), layers)
        if listed is not None:
            return tuple(i for i in every if listed[1][i] in sparse)
    if (named := _named(reader)) is not None:
        return tuple(i for i in every if i in named)
    for field in ("moe_layer_frequency", "interleave_moe_layer_step"):  # Arctic, Llama-4: layers are counted from 1
        if reader.get(field) is not None:
            period = reader.whole((field,))
            return tuple(i for i in every if (i + 1) % period == 0)
    known = reader.model_type in EVERY_LAYER | FIRST_DENSE.keys() or reader.get("residual_moe") is not None  # Grok-2
    if reader.first(SAID_BY) is None and not known:
        rule = f"says nothing of which layers have experts (by none of {', '.join(SAID_BY[:8])}, …)"
        raise reader.error(rule, "num_hidden_layers", layers)
    return _by_rule(reader, layers)


def _named(reader: Reader) -> set[int] | None:
    """Layers that are named one by one: a list (Llama-4), or text such as "4,5,6" (Step-3)."""
    found = reader.first(("moe_layers", "moe_layers_enum"))
    if found is None:
        return None
    name, value = found
    parts = value.split(",") if isinstance(value, str) else value
    try:
        return {int(part) for part in parts}
    except (TypeError, ValueError) as error:
        raise reader.error('must be layers, as a list or as "4,5,6"', name, value) from error


def _by_rule(reader: Reader, layers: int) -> tuple[int, ...]:
    silent = reader.first(SAID_BY) is None
    first = reader.whole(FIRST, FIRST_DENSE.get(reader.model_type, 0) if silent else 0, least=0)
    end = reader.get("moe_layer_end_index")
    # -1: ERNIE's last
    last = layers - 1 if end in (None, -1) else reader.whole(("moe_layer_end_index",), least=0)
    period = max(reader.whole(PERIOD, 1, least=0), 1)
    sparse_step = reader.get("decoder_sparse_step") is not None
    offset = reader.whole(("expert_layer_offset",), period - 1 if sparse_step else 0, least=0)
    dense = reader.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        raise reader.error("must be a list of layers", "mlp_only_layers", dense)
    return tuple(i for i in range(layers) if first <= i <= last and i % period == offset and i not in dense)
