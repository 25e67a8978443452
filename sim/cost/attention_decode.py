"""What attention of new tokens over their cache costs: one item of work per sequence and key head, cut over the SMs.

    seconds = launch + (min over cuts of (work of all SMs^p + longest piece^p)^(q/p) +
    traffic^q)^(1/q) + moving

An item reads its keys at what one SM takes in and multiplies them with all queries that share them;
cutting it into pieces along the keys shortens the longest piece, costs each piece's start again and
one more pass. Sources: Flash-Decoding (Dao et al., 2023); FlashMLA; the roofline.
docs/cost/attention.md has the parameters' errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.attention_prefill import ELEMENT_BYTES, checked, products_s
from moecast.sim.cost.formulas import check_positive, soft_maximum
from moecast.sim.cost.gpus import L2_BYTES, gpu_key
from moecast.sim.cost.memory import moving_seconds

if TYPE_CHECKING:
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

CUTS = (1, 2, 4, 8, 16, 32, 64, 128)
ROW_STEP = 8  # query rows that tensor cores take at least
OVERLAP = 4.0  # p of the norm that joins an item's reading and its products, which overlap well


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeParameters:
    """Constants of one GPU's, engine's and cache type's attention of new tokens.

    Parameters
    ----------
    rate
        Which of the GPU's peaks the products run at; bf16 where it has none of that name.
    tile_rows
        Queries that an item takes at once; 0: each query head is an item of its own.
    launch_s
        Time of the operator without work.
    peak_part
        Reached part of the peak.
    sm_Bps
        Rate at which one SM takes in keys and values.
    item_s, element_s
        Seconds of one SM that a piece costs beside its keys, and per element of a head's key and
        value.
    cut_s
        Time that putting pieces together costs.
    memory_part, cache_ratio
        Reached part of the memory's bandwidth; rate out of L2 over it (benchmarks only; in a step
        caches are cold).
    moves
        How often queries and outputs move through memory beside.
    softness, traffic_softness
        p and q of the norms.
    window_keys
        Keys read beside those of a window.
    odd_width
        Factor on the work of SMs where the width of a head is no power of two.
    head_dims
        Widths of heads that were measured.

    Raises
    ------
    ValueError
        A number out of its range.
    """

    rate: str
    tile_rows: float
    launch_s: float
    peak_part: float
    sm_Bps: float
    item_s: float
    element_s: float
    cut_s: float
    memory_part: float
    cache_ratio: float
    moves: float
    softness: float
    traffic_softness: float
    window_keys: float
    odd_width: float
    head_dims: str = ""

    def __post_init__(self) -> None:
        check_positive(self, may_be_zero=("tile_rows", "item_s", "element_s", "cut_s", "moves", "window_keys"))
        for name in ("softness", "traffic_softness", "odd_width", "cache_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be at least 1")


def decode_seconds(
    parameters: DecodeParameters,
    hardware: Hardware,
    batch: npt.ArrayLike,
    keys: npt.ArrayLike,
    *,
    heads: npt.ArrayLike,
    kv_heads: npt.ArrayLike,
    head_dim: npt.ArrayLike,
    value_dim: npt.ArrayLike,
    key_bytes: npt.ArrayLike,
    queries: npt.ArrayLike = 1.0,
    windowed: npt.ArrayLike = False,
    warm: bool = False,
) -> Float:
    """Attention of `batch` sequences' new tokens.

    0 without any. Never falls when an amount of work grows.

    Parameters
    ----------
    batch, keys
        Sequences, and the keys that each reads in the mean (of a window: at most its size).
    heads, kv_heads, head_dim, value_dim
        Query heads, key/value heads, width of a query and key, of a value. Absorbed MLA: one key
        head.
    key_bytes
        Bytes of one key and its value in the cache, for one key head.
    queries
        New tokens of each sequence, which share one reading of its keys.
    windowed
        Where the keys are those of a window that is shorter than the context.
    warm
        Whether what stays in L2 is read from there, as in a benchmark that loops over one cache.

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
        keys=keys,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        key_bytes=key_bytes,
        queries=queries,
        windowed=windowed,
    )
    batch_R, keys_R, heads_R, kv_heads_R, head_dim_R, value_dim_R, bytes_R, queries_R, windowed_R = sizes
    keys_R = keys_R + np.where(windowed_R > 0, p.window_keys, 0.0)
    width_R = head_dim_R + value_dim_R
    work_s = _work_seconds(
        p,
        hardware,
        items=batch_R * (kv_heads_R if p.tile_rows else heads_R),
        keys=keys_R,
        rows=queries_R * (heads_R / np.maximum(kv_heads_R, 1) if p.tile_rows else 1.0),
        width=width_R,
        key_bytes=bytes_R,
        odd=np.where(np.log2(np.maximum(head_dim_R, 1)) % 1 > 0, p.odd_width, 1.0),
    )
    traffic_s = moving_seconds(
        batch_R * kv_heads_R * keys_R * bytes_R,
        memory_Bps=hardware.memory_Bps * p.memory_part,
        cache_ratio=p.cache_ratio if warm else 1.0,
        l2_bytes=L2_BYTES[gpu_key(hardware)],
    )
    moved = batch_R * queries_R * heads_R * width_R * ELEMENT_BYTES * p.moves
    seconds = p.launch_s + soft_maximum(work_s, traffic_s, p.traffic_softness) + moved / hardware.memory_Bps
    return np.where(batch_R * queries_R * heads_R > 0, seconds, 0.0)


def _work_seconds(
    p: DecodeParameters,
    hardware: Hardware,
    *,
    items: Float,
    keys: Float,
    rows: Float,
    width: Float,
    key_bytes: Float,
    odd: Float,
) -> Float:
    """What the SMs take under the best cut: all their work evenly, or the longest piece."""
    tiles = np.ceil(rows / p.tile_rows) if p.tile_rows else rows
    padded = np.minimum(np.ceil(rows / ROW_STEP) * ROW_STEP, p.tile_rows) if p.tile_rows else np.ones(rows.shape)
    products = padded * products_s(hardware, p.rate, p.peak_part, width)
    key_s = odd * soft_maximum(key_bytes / p.sm_Bps, products, OVERLAP)
    item_s = odd * (p.item_s + p.element_s * width)
    best = np.full(items.shape, np.inf)
    for cuts in CUTS:
        total = items * tiles * (cuts * item_s + keys * key_s) / hardware.sms
        longest = keys / cuts * key_s + (p.cut_s if cuts > 1 else 0.0)
        best = np.minimum(best, soft_maximum(total, longest, p.softness))
    return best
