"""What attention over whole prompts costs: tiles of queries over the keys before them, dealt to the SMs, and a launch.

    seconds = launch + (work of all SMs^p + longest tile^p)^(1/p) + what moves beside the tiles

A tile of queries multiplies with all keys it may see, in tiles of keys, and pays for the softmax of
each pair besides; both are rounded up to whole tiles. Queries, keys, values and outputs move once
(rotation, writing the cache and quantisation, where the measured operator holds them). Sources:
FlashAttention-2 and -3 (arXiv 2307.08691, 2407.08608). docs/cost/attention.md has the parameters'
errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.formulas import check_positive, soft_maximum

if TYPE_CHECKING:
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

KEY_TILE = 128
ELEMENT_BYTES = 2.0  # of queries and outputs; of keys and values as they come


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillParameters:
    """Constants of one GPU's, engine's and element type's attention over prompts.

    Parameters
    ----------
    rate
        Which of the GPU's peaks the products run at; bf16 where it has none of that name.
    tile_rows
        Queries of a tile.
    packed
        Whether the query heads that share keys lie in one tile.
    launch_s
        Time of the operator without work.
    peak_part
        Reached part of the peak in the products alone.
    softmax_s
        Seconds of one SM per (query, key) pair and head beside the products.
    tile_s
        Seconds of one SM that a tile costs beside its pairs.
    chain
        A tile that runs alone takes so many times what it takes among others.
    query_moves, key_moves
        How often queries and outputs, and keys and values, move through memory beside the tiles.
    softness
        p of the norm that joins the work of all and the longest tile.
    window_keys
        Keys that a tile reads beside those of its window.
    odd_width
        Factor on the work where the width of a head is no power of two.
    head_dims
        Widths of heads that were measured.
    absorbed
        Latent attention alone: whether the kernel runs over latent vectors, one key head for all,
        also in prefill.

    Raises
    ------
    ValueError
        A number out of its range.
    """

    rate: str
    tile_rows: float
    packed: bool
    launch_s: float
    peak_part: float
    softmax_s: float
    tile_s: float
    chain: float
    query_moves: float
    key_moves: float
    softness: float
    window_keys: float
    odd_width: float
    head_dims: str = ""
    absorbed: bool = False

    def __post_init__(self) -> None:
        check_positive(
            self, may_be_zero=("packed", "absorbed", "softmax_s", "tile_s", "query_moves", "key_moves", "window_keys")
        )
        for name in ("softness", "odd_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be at least 1")


def prefill_seconds(
    parameters: PrefillParameters,
    hardware: Hardware,
    batch: npt.ArrayLike,
    length: npt.ArrayLike,
    *,
    heads: npt.ArrayLike,
    kv_heads: npt.ArrayLike,
    head_dim: npt.ArrayLike,
    value_dim: npt.ArrayLike | None = None,
    context: npt.ArrayLike = 0.0,
    window: npt.ArrayLike = 0.0,
    mixed: bool = False,
) -> Float:
    """Causal attention of `batch` prompts.

    0 without tokens. Never falls when an amount of work grows.

    Parameters
    ----------
    batch, length
        Prompts, and tokens of each.
    heads, kv_heads, head_dim, value_dim
        Query heads, key/value heads, width of a query and key, of a value (None: the same).
    context
        Keys of each sequence that were there before.
    window
        Keys that a token looks back on, itself included; 0: all.
    mixed
        Prompts of many lengths about `length`: half a tile is lost in the mean, and not what this
        very length loses.

    Returns
    -------
    float64 of the broadcast shape, seconds.

    Raises
    ------
    ValueError
        An amount that is negative or not finite.
    """
    p = parameters
    sizes = checked(
        batch=batch,
        length=length,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=head_dim if value_dim is None else value_dim,
        context=context,
        window=window,
    )
    batch_R, length_R, heads_R, kv_heads_R, head_dim_R, value_dim_R, context_R, window_R = sizes
    group_R = heads_R / np.maximum(kv_heads_R, 1) if p.packed else np.ones(heads_R.shape)
    tiles_R, keys_R, longest_R = _tiles(p, length_R, context_R, window_R, p.tile_rows / group_R, mixed=mixed)
    row_s = p.tile_rows * _pair_seconds(p, hardware, head_dim_R, value_dim_R)
    total_s = batch_R * heads_R / group_R * (keys_R * row_s + tiles_R * p.tile_s) / hardware.sms
    moves = heads_R * p.query_moves + kv_heads_R * p.key_moves
    moved = batch_R * length_R * (head_dim_R + value_dim_R) * moves * ELEMENT_BYTES
    seconds = p.launch_s + soft_maximum(total_s, longest_R * row_s * p.chain, p.softness) + moved / hardware.memory_Bps
    return np.where(batch_R * length_R * heads_R > 0, seconds, 0.0)


def _tiles(
    p: PrefillParameters, length: Float, context: Float, window: Float, step: Float, *, mixed: bool
) -> tuple[Float, Float, Float]:
    """Of one prompt and head: tiles of queries, keys that all of them see in the sum, and those that the last sees."""
    if mixed:
        tiles = np.maximum(length / step + 0.5, 1.0)
        own = tiles * step
    else:
        tiles = np.ceil(length / step)
        own = np.minimum(tiles * step, np.ceil(length / KEY_TILE) * KEY_TILE)
    most = np.where(window > 0, window + step + p.window_keys, 1e18)
    last = np.minimum(context + own, most)
    before = np.maximum(tiles - 1, 0)
    growing = np.clip(np.floor((most - context) / step), 0, before)
    keys = growing * context + step * growing * (growing + 1) / 2 + (before - growing) * most
    return tiles, keys + last, last


def _pair_seconds(p: PrefillParameters, hardware: Hardware, head_dim: Float, value_dim: Float) -> Float:
    """Seconds of one SM for a query and a key of one head."""
    pair_s = products_s(hardware, p.rate, p.peak_part, head_dim + value_dim) + p.softmax_s
    seconds: Float = pair_s * np.where(np.log2(np.maximum(head_dim, 1)) % 1 > 0, p.odd_width, 1.0)
    return seconds


def cheapest_length(
    parameters: PrefillParameters, hardware: Hardware, *, heads: int, kv_heads: int, head_dim: int, value_dim: int
) -> float:
    """The length of mixed prompts at which their tokens are cheapest.

    Shorter prompts pay more for tiles that are not full than they save in keys: for so many tokens,
    fewer keys would cost more.
    """
    p, group = parameters, heads / kv_heads if parameters.packed else 1.0
    pair_s = float(_pair_seconds(p, hardware, np.asarray(head_dim, np.float64), np.asarray(value_dim, np.float64)))
    return float(max(np.sqrt(p.tile_s / (pair_s * group)), p.tile_rows / group / 2))


def products_s(hardware: Hardware, rate: str, part: float, width: Float) -> Float:
    """Seconds of one SM for a query and a key: 2 FLOP for each of `width` elements, at a part of a peak."""
    peaks = hardware.peak_flop_per_s
    seconds: Float = 2 * width * hardware.sms / (peaks.get(rate, peaks["bf16"]) * part)
    return seconds


def checked(**amounts: npt.ArrayLike) -> list[Float]:
    """The amounts as float64 arrays of one shape, each checked by its name."""
    arrays = [np.array(amount, np.float64) for amount in np.broadcast_arrays(*amounts.values())]
    for name, amount in zip(amounts, arrays, strict=True):
        if amount.size and not (amount.min() >= 0 and amount.max() < np.inf):
            raise ValueError(f"{name} must be finite and not negative")
    return arrays
