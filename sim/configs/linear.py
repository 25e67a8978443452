"""Linear attention of a config: gated delta, Kimi's, lightning, Mamba, short convolutions, each by its own sizes."""

from __future__ import annotations

from collections.abc import Callable

from moecast.sim.attention_shape import LinearAttention
from moecast.sim.configs.names import HEAD_DIM, HEADS, HIDDEN
from moecast.sim.configs.reader import Reader


def read_linear(reader: Reader) -> LinearAttention:
    """Whichever linear kind has its sizes in the config.

    Raises
    ------
    MoecastError
        None has.
    """
    for field, read in _READERS:
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
    # Decay and output gate: both through one head's width, or (Ling) as wide as the keys.
    gates = ((hidden, channels),) if reader.model_type == "bailing_hybrid" else ((hidden, width), (width, channels))
    return LinearAttention(
        kind="kda",
        heads=heads,
        key_dim=width,
        value_dim=width,
        projections=(
            (hidden, 3 * channels),
            *gates * 2,
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


_READERS: tuple[tuple[str, Callable[[Reader], LinearAttention]], ...] = (
    ("linear_num_value_heads", _gated_delta),
    ("linear_num_heads", _kda),
    ("linear_attn_config", _kda),
    ("mamba_num_heads", _mamba2),
    ("mamba_n_heads", _mamba2),
    ("mamba_dt_rank", _mamba),
    ("conv_L_cache", _conv),
)
"""A field that only one kind has, and what reads that kind."""
