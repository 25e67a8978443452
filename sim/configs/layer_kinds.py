"""Which kind of attention every hidden layer of a config has: all keys, a window, few, linear, or none."""

from __future__ import annotations

from typing import Any

from moecast.sim.configs.names import WINDOW
from moecast.sim.configs.reader import Reader

FULL, SLIDING, LINEAR, SPARSE, NONE = "full", "sliding", "linear", "sparse", "none"
# DeepSeek-V4's: all of the compressed keys, or few
COMPRESSED, FEW_COMPRESSED = "compressed", "few compressed"
# The words of `layer_types` and its like. A word that is not here is not priced.
WORDS: dict[Any, str] = {
    "full_attention": FULL, "attention": FULL, "global_attention": FULL, "global": FULL, "full": FULL,
    "sliding_attention": SLIDING, "chunked_attention": SLIDING, "local_attention": SLIDING, "swa": SLIDING,
    "sliding_window_attention": SLIDING,
    "linear_attention": LINEAR, "mamba": LINEAR, "conv": LINEAR, "kda": LINEAR, "lightning_attention": LINEAR,
    "indexed_attention": SPARSE, "sparse_attention": SPARSE, "minimax_m3_sparse": SPARSE,
    "block_sparse_attention": SPARSE, "moe": NONE, "mlp": NONE,
    "heavily_compressed_attention": COMPRESSED, "compressed_sparse_attention": FEW_COMPRESSED,
}  # fmt: skip


def layer_kinds(reader: Reader, layers: int) -> list[str]:
    """Name the kind of every hidden layer: by a list, by a period, or by the class.

    Raises
    ------
    MoecastError
        A word that is not known.
    """
    for names, words in (
        (("layer_types", "layers_block_type"), WORDS),
        (("hybrid_override_pattern",), {"M": LINEAR, "*": FULL, "E": NONE, "-": NONE}),
        # MiMo, SmallThinker
        (("hybrid_layer_pattern", "sliding_window_layout"), {0: FULL, 1: SLIDING}),
        (("attn_type_list",), {0: LINEAR, 1: FULL}),  # MiniMax
        (("compress_ratios",), {0: SLIDING, 4: FEW_COMPRESSED, 128: COMPRESSED}),  # DeepSeek-V4
    ):
        listed = reader.listed(names, layers)
        if listed is not None:
            return _translated(reader, *listed, words)
    kinds = _by_period(reader, layers) or _by_index(reader, layers)
    if kinds is not None:
        return kinds
    sparse = reader.get("index_topk") is not None
    return [SPARSE if sparse else SLIDING if _slides_everywhere(reader) else FULL] * layers


def _translated(reader: Reader, name: str, listed: list[Any], words: dict[Any, str]) -> list[str]:
    for word in listed:
        if not isinstance(word, (str, int)) or word not in words:
            raise reader.error("attention of this kind is not priced", name, word)
    if name == "layer_types" and "sliding_attention" in listed and window_of(reader) is None:
        return [FULL if words[word] == SLIDING else words[word] for word in listed]
    return [words[word] for word in listed]


def _by_period(reader: Reader, layers: int) -> list[str] | None:
    """Every n-th layer differs: the last of each n, or at an offset (Jamba)."""
    if reader.get("attn_layer_period") is not None:
        period, offset = reader.whole(("attn_layer_period",)), reader.whole(("attn_layer_offset",), 0, least=0)
        return [FULL if i % period == offset else LINEAR for i in range(layers)]
    pattern = reader.get("sliding_window_pattern")
    if isinstance(pattern, str) and window_of(reader) is not None:  # EXAONE's: local layers and global ones
        if not pattern or set(pattern) - {"L", "G"}:
            raise reader.error('must be L and G, as "LLLG", or a whole number', "sliding_window_pattern", pattern)
        return [SLIDING if pattern[i % len(pattern)] == "L" else FULL for i in range(layers)]
    for field, other in (
        ("full_attention_interval", LINEAR),
        ("layer_group_size", LINEAR),
        ("sliding_window_pattern", SLIDING),
        ("global_attn_every_n_layers", SLIDING),
    ):
        if isinstance(reader.get(field), int) and (other == LINEAR or window_of(reader) is not None):
            period = reader.whole((field,))
            return [FULL if (i + 1) % period == 0 else other for i in range(layers)]
    if reader.model_type == "gpt_oss":  # the family alternates, sliding first
        return [FULL if i % 2 else SLIDING for i in range(layers)]
    return None


def _by_index(reader: Reader, layers: int) -> list[str] | None:
    """Layers named one by one: Kimi Linear's, counted from 1, and those that slide."""
    linear = reader.get("linear_attn_config")
    if isinstance(linear, dict) and isinstance(linear.get("full_attn_layers"), list):
        full = {layer - 1 for layer in linear["full_attn_layers"] if isinstance(layer, int)}
        return [FULL if i in full else LINEAR for i in range(layers)]
    local = reader.get("local_layer_ids")
    if isinstance(local, list):
        return [SLIDING if i in local else FULL for i in range(layers)]
    return None


def _slides_everywhere(reader: Reader) -> bool:
    """Mistral's and Qwen's way: a window for all layers, or none."""
    return window_of(reader) is not None and reader.flag("use_sliding_window", "qwen" not in reader.model_type)


def window_of(reader: Reader) -> int | None:
    """How many keys a sliding layer sees; None: the config has no window."""
    found = reader.first(WINDOW)
    if found is None or found[1] == 0:
        return None
    return reader.whole((found[0],))
