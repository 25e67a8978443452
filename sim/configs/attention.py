"""What mixes the tokens of each hidden layer, as a config says it: the shapes of attention, beside linear ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moecast.sim.attention_shape import AttentionShape, Mixer
from moecast.sim.configs.layer_kinds import (
    COMPRESSED,
    FEW_COMPRESSED,
    FULL,
    LINEAR,
    SLIDING,
    SPARSE,
    layer_kinds,
    window_of,
)
from moecast.sim.configs.linear import read_linear
from moecast.sim.configs.names import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    KV_RANK,
    NOPE_DIM,
    Q_RANK,
    ROPE_DIM,
    VALUE_DIM,
    WINDOW,
)
from moecast.sim.configs.reader import Reader


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
    if reader.model_type == "jetmoe":
        raise reader.error(
            "experts of queries and outputs, which its attention has, are not priced", "model_type", "jetmoe"
        )
    if reader.model_type == "doge":
        raise reader.error("experts that are single neurons are not priced", "model_type", "doge")
    kinds = layer_kinds(reader, layers)
    linear = read_linear(reader) if LINEAR in kinds else None
    windowed = tuple(i for i, kind in enumerate(kinds) if kind == SLIDING)
    try:
        full, sliding, sparse = _full(reader), _sliding(reader, windowed), _sparse(reader, kinds)
        if sliding is not None and replace(sliding, window=None, windowed_layers=()) == full:
            full, sliding = sliding, None  # one shape, some of whose layers slide
        shapes = {FULL: full, SLIDING: full if sliding is None else sliding, SPARSE: full if sparse is None else sparse}
        if reader.model_type == "deepseek_v4":
            shapes |= _one_vector(reader, layers)
        own = _own_sizes(reader, layers)
        reads, indexed = _shared_kv(reader, layers), _indexers(reader, layers)
        found: list[Mixer | None] = [linear if kind == LINEAR else None for kind in kinds]
        for layer, kind in enumerate(kinds):
            if kind in shapes:
                shape = _of_layer(reader, shapes[kind], own.get(layer, {}))
                shape = replace(shape, index_heads=0, index_dim=0) if layer not in indexed else shape
                found[layer] = replace(shape, own_kv=False) if layer in reads else shape
    except ValueError as error:  # AttentionShape checks how its sizes fit each other
        raise reader.error(str(error), "attention") from error
    return _numbered(found, full)


def _of_layer(reader: Reader, shape: AttentionShape, own: dict[str, Any]) -> AttentionShape:
    """What a layer has, whose sizes are its own: the rest is as of all layers of its kind."""
    if not own:
        return shape
    sized = _full(reader.with_fields(own))
    more = {field: getattr(shape, field) for field in ("sparse_keys", "index_heads", "index_dim")}
    return replace(sized, window=shape.window, windowed_layers=shape.windowed_layers, **more)


_SIZES = frozenset({*HEADS, *KV_HEADS, *HEAD_DIM, *KV_RANK, *Q_RANK, *NOPE_DIM, *ROPE_DIM, *VALUE_DIM})


def _own_sizes(reader: Reader, layers: int) -> dict[int, dict[str, Any]]:
    """Sizes of attention that differ by layer: query heads in a list, or transformers' `per_layer_config`.

    Raises
    ------
    MoecastError
        A layer has something of its own that is no size of attention.
    """
    heads = reader.listed(("num_attention_heads_per_layer",), layers)
    usual = reader.first(HEADS)
    found = (
        {} if heads is None else {i: {HEADS[0]: n} for i, n in enumerate(heads[1]) if usual is None or n != usual[1]}
    )
    table = reader.get("per_layer_config")
    for key, own in (table if isinstance(table, dict) else {}).items():
        if not (str(key).isascii() and str(key).isdigit()) or not isinstance(own, dict):
            raise reader.error("must be objects by number of layer", "per_layer_config", {key: own})
        other = {name: value for name, value in own.items() if reader.config.get(name) != value}
        if other.keys() - _SIZES:
            name = min(other.keys() - _SIZES)
            raise reader.error("sizes of attention by layer are priced, this is none", f"per_layer_config.{key}.{name}")
        found[int(key)] = {**found.get(int(key), {}), **other}
    return found


def _indexers(reader: Reader, layers: int) -> set[int]:
    """Layers with an indexer of their own; the others take the keys that one before them chose."""
    listed = reader.listed(("indexer_types",), layers)
    if listed is None:
        return set(range(layers))
    if wrong := [word for word in listed[1] if word not in ("full", "shared")]:
        raise reader.error("full or shared", "indexer_types", wrong[0])
    return {layer for layer, word in enumerate(listed[1]) if word == "full"}


def _shared_kv(reader: Reader, layers: int) -> set[int]:
    """Layers that read another's keys and values: Hunyuan-Large's of each few, Gemma-4's last ones.

    Raises
    ------
    MoecastError
        The MLPs of such layers are of another width.
    """
    last = reader.whole(("num_kv_shared_layers",), 0, least=0)
    if last >= layers:
        raise reader.error(f"must be fewer than the {layers} layers", "num_kv_shared_layers", last)
    if last and reader.flag("use_double_wide_mlp", False):
        raise reader.error("MLPs of two widths are not priced", "use_double_wide_mlp", True)
    factor = reader.whole(("cla_share_factor",), 1) if reader.flag("use_cla", False) else 1
    return {layer for layer in range(layers) if layer % factor or layer >= layers - last}


def _numbered(found: list[Mixer | None], default: AttentionShape) -> Mixers:
    """Attention to all keys comes first, where layers have it; what no layer has is left out."""
    distinct = list(dict.fromkeys(mixer for mixer in found if mixer is not None))
    attention = [mixer for mixer in distinct if isinstance(mixer, AttentionShape)]
    main = default if default in attention or not attention else attention[0]
    order = [main, *(mixer for mixer in distinct if mixer != main)]
    number_of = {mixer: index for index, mixer in enumerate(order)}
    numbers = tuple(-1 if mixer is None else number_of[mixer] for mixer in found)
    return Mixers(
        attention=main, more_attention=tuple(order[1:]), mixer_of_layer=() if set(numbers) == {0} else numbers
    )


_GATED = (
    "qwen3_next", "afmoe", "qwen3_5_moe_text", "qwen3_5_moe", "beam", "muse_spark_text", "hy_v4", "hy_v4_vl_text",
)  # fmt: skip
_GATED_BY_HEAD = ("step3p5", "laguna", "bailing_hybrid", "dots3_note_text")
"""Classes whose attention has a gate on its output, and that have no word for it."""


def _full(reader: Reader) -> AttentionShape:
    if reader.first(KV_RANK) is not None:
        return _latent(reader)
    if reader.first(NOPE_DIM) is not None:
        raise reader.error("missing, and the other sizes of latent attention are there", " or ".join(KV_RANK))
    heads = reader.whole(HEADS)
    kv_heads = reader.whole(("num_global_key_value_heads", *KV_HEADS), heads)
    width = reader.whole(("global_head_dim", *HEAD_DIM), max(reader.whole(HIDDEN) // heads, 1))
    gate = _gate(reader, heads, width)
    # Gemma-4's layers that see all keys
    more = {"own_values": not reader.flag("attention_k_eq_v", False)}
    return _heads(heads, kv_heads, width, _value_dim(reader, width), q_rank=_compressed(reader), gate=gate, **more)


def _gate(reader: Reader, heads: int, width: int) -> int:
    """Width of the gate on the output: an element of each head's, or one for each head."""
    if reader.get("gating") not in (None, True, False, "per-head"):
        return heads * width
    if reader.flag("use_head_wise_attn_gate", reader.model_type in _GATED_BY_HEAD):
        return heads
    return heads * width if reader.flag("attn_output_gate", reader.model_type in _GATED) else 0


def _compressed(reader: Reader) -> int:
    """Width of the compressed query of models without latent keys: Step-3's."""
    return reader.whole(("share_q_dim",), 0, least=0)


def _value_dim(reader: Reader, width: int) -> int:
    return reader.whole(VALUE_DIM, width)


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
    heads, rope, value = reader.whole(HEADS), reader.whole(ROPE_DIM, least=0), reader.whole(VALUE_DIM)
    return AttentionShape(
        kind="mla",
        heads=heads,
        kv_heads=heads,
        head_dim=reader.whole(NOPE_DIM) + rope,
        value_dim=value,
        gate_width=_gate(reader, heads, value),
        q_rank=reader.whole(Q_RANK, 0, least=0),
        kv_rank=reader.whole(KV_RANK),
        rope_dim=rope,
    )


def _sliding(reader: Reader, windowed: tuple[int, ...]) -> AttentionShape | None:
    """The attention of layers that slide, which may have heads of its own."""
    if not windowed:
        return None
    window = window_of(reader)
    if window is None:
        raise reader.error("missing", " or ".join(WINDOW))
    other = reader.get("attention_other_setting")  # Step-3.5
    own = other if isinstance(other, dict) and other.get("attention_type") == "sliding_attention" else {}
    base = _full(reader)
    if base.kind == "mla":
        return replace(base, window=window, windowed_layers=windowed)
    own_reader = reader.with_fields(own)
    heads = own_reader.whole(("swa_num_attention_heads", "num_sliding_attention_heads", *HEADS))
    kv_heads = own_reader.whole(("swa_num_key_value_heads",), 0, least=0) or own_reader.whole(KV_HEADS, heads) * (
        # its class doubles them where layers slide
        2 if reader.model_type == "mimo_v2_flash" else 1
    )
    width = own_reader.whole(("swa_head_dim", *HEAD_DIM), max(reader.whole(HIDDEN) // heads, 1))
    value = own_reader.whole(("swa_v_head_dim",), _value_dim(own_reader, width))
    gate = _gate(reader, heads, width)
    return _heads(heads, kv_heads, width, value, q_rank=base.q_rank, gate=gate, window=window, windowed_layers=windowed)


def _one_vector(reader: Reader, layers: int) -> dict[str, AttentionShape]:
    """DeepSeek-V4: one vector a token for all heads, a window of them, and compressed ones beside it."""
    heads, width = reader.whole(HEADS), reader.whole(HEAD_DIM)
    rates = reader.get("compress_rates")
    rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128} if rates is None else rates
    if not isinstance(rates, dict):
        raise reader.error("must be an object", "compress_rates", rates)
    window = AttentionShape(
        kind="gqa" if heads > 1 else "mha",
        heads=heads,
        kv_heads=reader.whole(KV_HEADS, 1),
        head_dim=width,
        value_dim=width,
        q_rank=reader.whole(Q_RANK),
        own_values=False,
        one_vector=True,
        out_rank=reader.whole(("o_lora_rank",)),
        out_groups=reader.whole(("o_groups",)),
        window=reader.whole(WINDOW),
        windowed_layers=tuple(range(layers)),
    )
    rate = Reader(rates, reader.file)
    few = replace(
        window,
        compress=rate.whole(("compressed_sparse_attention",)),
        compress_width=2 * width,  # two series, of which neighbours share one
        sparse_keys=reader.whole(("index_topk",)),
        index_heads=reader.whole(("index_n_heads",)),
        index_dim=reader.whole(("index_head_dim",)),
    )
    most = replace(window, compress=rate.whole(("heavily_compressed_attention",)), compress_width=width)
    return {SLIDING: window, COMPRESSED: most, FEW_COMPRESSED: few}


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
