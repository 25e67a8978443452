"""What mixes the tokens of each hidden layer: attention of several kinds, or a linear one, as a config says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from moecast.sim.attention_shape import AttentionShape, LinearAttention, Mixer
from moecast.sim.hf_reader import Reader

HEADS = ("num_attention_heads", "n_head", "n_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "num_attention_groups", "kv_n_heads")
HEAD_DIM = ("head_dim", "kv_channels", "attention_head_dim")
WINDOW = ("sliding_window", "sliding_window_size", "attention_chunk_size")
HIDDEN = ("hidden_size", "d_model", "n_embd")

FULL, SLIDING, LINEAR, SPARSE, NONE = "full", "sliding", "linear", "sparse", "none"
# The words of `layer_types` and its like. A word that is not here is not priced.
WORDS: dict[Any, str] = {
    "full_attention": FULL, "attention": FULL, "global_attention": FULL, "global": FULL, "full": FULL,
    "sliding_attention": SLIDING, "chunked_attention": SLIDING, "local_attention": SLIDING, "swa": SLIDING,
    "sliding_window_attention": SLIDING,
    "linear_attention": LINEAR, "mamba": LINEAR, "conv": LINEAR, "kda": LINEAR, "lightning_attention": LINEAR,
    "indexed_attention": SPARSE, "sparse_attention": SPARSE, "minimax_m3_sparse": SPARSE,
    "block_sparse_attention": SPARSE, "moe": NONE, "mlp": NONE,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixers:
    """The fields of a ModelShape that say what mixes tokens."""

    attention: AttentionShape
    more_attention: tuple[Mixer, ...]
    mixer_of_layer: tuple[int, ...]


def read_mixers(reader: Reader, layers: int) -> Mixers:
    """Read what each hidden layer has.

    Raises
    ------
    MoecastError
        A layer has what is not priced; a size is missing or wrong.
    """
    kinds = layer_kinds(reader, layers)
    windowed = tuple(i for i, kind in enumerate(kinds) if kind == SLIDING)
    try:
        full, sliding, sparse = _full(reader), _sliding(reader, windowed), _sparse(reader, kinds)
    except ValueError as error:  # AttentionShape checks how its sizes fit each other
        raise reader.error(str(error), "attention") from error
    if sliding is not None and replace(sliding, window=None, windowed_layers=()) == full:
        full, sliding = sliding, None  # one shape, some of whose layers slide
    found: dict[str, Mixer] = {FULL: full}
    if sliding is not None:
        found[SLIDING] = sliding
    if sparse is not None:
        found[SPARSE] = sparse
    if LINEAR in kinds:
        found[LINEAR] = _linear(reader)
    return _numbered(found, [kind if kind in found or kind == NONE else FULL for kind in kinds])


def _numbered(found: dict[str, Mixer], kinds: list[str]) -> Mixers:
    """The kind of most attention layers comes first; what no layer has is left out."""
    used = [kind for kind in found if kind in kinds]
    attention = [kind for kind in used if isinstance(found[kind], AttentionShape)] or [FULL]
    order = [attention[0], *(kind for kind in used if kind != attention[0])]
    numbers = tuple(-1 if kind == NONE else order.index(kind) for kind in kinds)
    main = found[order[0]]
    assert isinstance(main, AttentionShape)
    return Mixers(
        attention=main,
        more_attention=tuple(found[kind] for kind in order[1:]),
        mixer_of_layer=() if set(numbers) == {0} else numbers,
    )


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
        (("hybrid_layer_pattern",), {0: FULL, 1: SLIDING}),  # MiMo
        (("attn_type_list",), {0: LINEAR, 1: FULL}),  # MiniMax
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
    if name == "layer_types" and "sliding_attention" in listed and _window(reader) is None:
        return [FULL if words[word] == SLIDING else words[word] for word in listed]
    return [words[word] for word in listed]


def _by_period(reader: Reader, layers: int) -> list[str] | None:
    """Every n-th layer differs: the last of each n, or at an offset (Jamba)."""
    if reader.get("attn_layer_period") is not None:
        period, offset = reader.whole(("attn_layer_period",)), reader.whole(("attn_layer_offset",), 0, least=0)
        return [FULL if i % period == offset else LINEAR for i in range(layers)]
    for field, other in (
        ("full_attention_interval", LINEAR),
        ("layer_group_size", LINEAR),
        ("sliding_window_pattern", SLIDING),
        ("global_attn_every_n_layers", SLIDING),
    ):
        if isinstance(reader.get(field), int) and (other == LINEAR or _window(reader) is not None):
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
    return _window(reader) is not None and reader.flag("use_sliding_window", "qwen" not in reader.model_type)


def _window(reader: Reader) -> int | None:
    found = reader.first(WINDOW)
    if found is None or found[1] == 0:
        return None
    return reader.whole((found[0],))


_GATED = ("qwen3_next", "afmoe", "qwen3_5_moe_text", "qwen3_5_moe")
"""Classes whose attention has a gate on its output, and that have no word for it."""


def _full(reader: Reader) -> AttentionShape:
    if reader.get("kv_lora_rank") is not None:
        return _latent(reader)
    if reader.get("qk_nope_head_dim") is not None:
        raise reader.error("missing, and the other sizes of latent attention are there", "kv_lora_rank")
    heads = reader.whole(HEADS)
    kv_heads = reader.whole(("num_global_key_value_heads", *KV_HEADS), heads)
    width = reader.whole(("global_head_dim", *HEAD_DIM), max(reader.whole(HIDDEN) // heads, 1))
    gate = heads * width if reader.flag("attn_output_gate", reader.model_type in _GATED) else 0
    per_layer = reader.get("num_attention_heads_per_layer")
    if isinstance(per_layer, list) and len(set(map(str, per_layer))) > 1:
        raise reader.error("heads that differ by layer are not priced", "num_attention_heads_per_layer", per_layer)
    return _heads(heads, kv_heads, width, _value_dim(reader, width), q_rank=_compressed(reader), gate=gate)


def _compressed(reader: Reader) -> int:
    """Width of the compressed query of models without latent keys: Step-3's."""
    return reader.whole(("share_q_dim",), 0, least=0)


def _value_dim(reader: Reader, width: int) -> int:
    return reader.whole(("v_head_dim", "value_head_dim"), width)


def _heads(
    heads: int, kv_heads: int, width: int, value: int, *, q_rank: int = 0, gate: int = 0, **more: Any
) -> AttentionShape:
    return AttentionShape(
        kind="mha" if kv_heads == heads else "gqa",
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        value_dim=value,
        q_rank=q_rank,
        gate_width=gate,
        **more,
    )


def _latent(reader: Reader) -> AttentionShape:
    heads, rope = reader.whole(HEADS), reader.whole(("qk_rope_head_dim",), least=0)
    return AttentionShape(
        kind="mla",
        heads=heads,
        kv_heads=heads,
        head_dim=reader.whole(("qk_nope_head_dim",)) + rope,
        value_dim=reader.whole(("v_head_dim",)),
        q_rank=reader.whole(("q_lora_rank",), 0, least=0),
        kv_rank=reader.whole(("kv_lora_rank",)),
        rope_dim=rope,
    )


def _sliding(reader: Reader, windowed: tuple[int, ...]) -> AttentionShape | None:
    """The attention of layers that slide, which may have heads of its own."""
    if not windowed:
        return None
    window = _window(reader)
    if window is None:
        raise reader.error("missing", " or ".join(WINDOW))
    other = reader.get("attention_other_setting")  # Step-3.5
    own = other if isinstance(other, dict) and other.get("attention_type") == "sliding_attention" else {}
    base = _full(reader)
    if base.kind == "mla":
        return replace(base, window=window, windowed_layers=windowed)
    own_reader = Reader({**reader.config, **own}, reader.file)
    heads = own_reader.whole(("swa_num_attention_heads", *HEADS))
    kv_heads = own_reader.whole(("swa_num_key_value_heads",), 0, least=0) or own_reader.whole(KV_HEADS, heads) * (
        2 if reader.model_type == "mimo_v2_flash" else 1  # its class doubles them where layers slide
    )
    width = own_reader.whole(("swa_head_dim", *HEAD_DIM), max(reader.whole(HIDDEN) // heads, 1))
    value = own_reader.whole(("swa_v_head_dim",), _value_dim(own_reader, width))
    gate = heads * width if base.gate_width else 0
    return _heads(heads, kv_heads, width, value, q_rank=base.q_rank, gate=gate, window=window, windowed_layers=windowed)


def _sparse(reader: Reader, kinds: list[str]) -> AttentionShape | None:
    """Attention to the keys that an indexer chooses: single ones (DeepSeek-V3.2) or blocks of them (MiniMax-M3)."""
    if SPARSE not in kinds:
        return None
    keys = reader.whole(("index_topk",), 0, least=0)
    if not keys:
        keys = reader.whole(("index_topk_blocks",)) * reader.whole(("index_block_size",))
    return replace(
        _full(reader),
        sparse_keys=keys,
        index_heads=reader.whole(("index_n_heads",)),
        index_dim=reader.whole(("index_head_dim",)),
    )


def _linear(reader: Reader) -> LinearAttention:
    """Whichever linear kind has its sizes in the config.

    Raises
    ------
    MoecastError
        None has.
    """
    for field, read in LINEAR_READERS:
        if reader.get(field) is not None:
            return read(reader)
    if reader.model_type in ("minimax", "minimax_m1", "minimax_text_01") or reader.get("attn_type_list") is not None:
        return _lightning(reader)
    if reader.get("layer_group_size") is not None:
        return _lightning(reader)
    raise reader.error("names linear layers whose sizes are not known", "layer_types", "linear_attention")


def _gated_delta(reader: Reader) -> LinearAttention:
    hidden = reader.whole(HIDDEN)
    key_heads, heads = reader.whole(("linear_num_key_heads",)), reader.whole(("linear_num_value_heads",))
    key, value = reader.whole(("linear_key_head_dim",)), reader.whole(("linear_value_head_dim",))
    keys, values = key_heads * key, heads * value
    return LinearAttention(
        kind="gated_delta",
        heads=heads,
        key_dim=key,
        value_dim=value,
        projections=((hidden, 2 * keys + 2 * values), (hidden, 2 * heads), (values, hidden)),
        conv_channels=2 * keys + values,
        conv_width=reader.whole(("linear_conv_kernel_dim",)),
    )


def _kda(reader: Reader) -> LinearAttention:
    nested = reader.get("linear_attn_config")
    inner = Reader(nested, reader.file) if isinstance(nested, dict) else reader
    heads = inner.whole(("linear_num_heads", "num_heads"))
    width = inner.whole(("linear_head_dim", "head_dim"))
    hidden, channels = reader.whole(HIDDEN), heads * width
    return LinearAttention(
        kind="kda",
        heads=heads,
        key_dim=width,
        value_dim=width,
        projections=(
            (hidden, 3 * channels),
            *((hidden, width), (width, channels)) * 2,  # decay and output gate, both through one head's width
            (hidden, heads),
            (channels, hidden),
        ),
        conv_channels=3 * channels,
        conv_width=inner.whole(("linear_conv_kernel_dim", "short_conv_kernel_size"), 4),
    )


def _lightning(reader: Reader) -> LinearAttention:
    hidden, heads = reader.whole(HIDDEN), reader.whole(HEADS)
    width = reader.whole(HEAD_DIM, max(hidden // heads, 1))
    channels = heads * width
    return LinearAttention(
        kind="lightning",
        heads=heads,
        key_dim=width,
        value_dim=width,
        projections=((hidden, 3 * channels), (hidden, channels), (channels, hidden)),
    )


def _mamba2(reader: Reader) -> LinearAttention:
    hidden = reader.whole(HIDDEN)
    heads = reader.whole(("mamba_num_heads", "mamba_n_heads"))
    width = reader.whole(("mamba_head_dim", "mamba_d_head"))
    state = reader.whole(("ssm_state_size", "mamba_d_state"))
    groups = reader.whole(("n_groups", "mamba_n_groups"), 1)
    inner = heads * width
    return LinearAttention(
        kind="mamba2",
        heads=heads,
        key_dim=state,
        value_dim=width,
        projections=((hidden, 2 * inner + 2 * groups * state + heads), (inner, hidden)),
        conv_channels=inner + 2 * groups * state,
        conv_width=reader.whole(("conv_kernel", "mamba_d_conv"), 4),
    )


def _mamba(reader: Reader) -> LinearAttention:
    hidden, state = reader.whole(HIDDEN), reader.whole(("mamba_d_state",))
    inner = hidden * reader.whole(("mamba_expand",), 2)
    rank = -(-hidden // 16) if reader.get("mamba_dt_rank") == "auto" else reader.whole(("mamba_dt_rank",))
    return LinearAttention(
        kind="mamba",
        heads=inner,
        key_dim=state,
        value_dim=1,
        projections=((hidden, 2 * inner), (inner, rank + 2 * state), (rank, inner), (inner, state), (inner, hidden)),
        conv_channels=inner,
        conv_width=reader.whole(("mamba_d_conv",), 4),
    )


def _conv(reader: Reader) -> LinearAttention:
    hidden = reader.whole(HIDDEN)
    return LinearAttention(
        kind="conv",
        heads=0,
        key_dim=0,
        value_dim=0,
        projections=((hidden, 3 * hidden), (hidden, hidden)),
        conv_channels=hidden,
        conv_width=reader.whole(("conv_L_cache",)),
    )


LINEAR_READERS: tuple[tuple[str, Callable[[Reader], LinearAttention]], ...] = (
    ("linear_num_value_heads", _gated_delta),
    ("linear_num_heads", _kda),
    ("linear_attn_config", _kda),
    ("mamba_num_heads", _mamba2),
    ("mamba_n_heads", _mamba2),
    ("mamba_dt_rank", _mamba),
    ("conv_L_cache", _conv),
)
"""A field that only one kind has, and what reads that kind."""
