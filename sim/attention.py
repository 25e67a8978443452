"""What one layer's attention costs, by kind.

Sources: FLOP and KV traffic of multi-head and grouped-query attention (arXiv 2305.13245); multi-head latent attention
and its absorbed form (arXiv 2405.04434, 2.1 and appendix C): prefill expands the latent vectors into heads, decode
keeps them and moves the expansion into the queries and the output; keys are read once per tile of queries
(FlashAttention-2, arXiv 2307.08691).

Axes: G rank; arrays may have any axes in front.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim import element_types, roofline

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

QUERY_TILE = 128  # queries that share one reading of the keys in prefill; FlashAttention's block of rows


def attention_seconds(
    model: ModelShape,
    hardware: Hardware,
    *,
    phase: str,
    tokens_G: npt.ArrayLike,
    context_sum_G: npt.ArrayLike,
    window_sum_G: npt.ArrayLike | None = None,
    tp: int = 1,
) -> Float:
    """Projections and attention of one layer on each rank; 0 where a rank has no tokens.

    Parameters
    ----------
    phase
        `prefill` or `decode`.
    tokens_G
        Tokens on each rank.
    context_sum_G
        Keys that they attend to, in all, each token's own included.
    window_sum_G
        For a sliding-window layer: the same with at most `window` keys per token, which then counts instead.
    tp
        Ranks that share the heads; each computes its part for the same tokens.
    """
    tokens = np.asarray(tokens_G, np.float64)
    keys = np.asarray(context_sum_G if window_sum_G is None else window_sum_G, np.float64)
    total = projection_seconds(model, hardware, tokens, tp=tp)
    return total + core_seconds(model, hardware, phase=phase, tokens_G=tokens, keys_G=keys, tp=tp)


def projection_seconds(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, *, tp: int = 1) -> Float:
    """Multiply into queries, keys, values and back, and rotate and fill the KV cache in one more kernel; one layer.

    MLA's expansion of the latent vectors costs the same in both phases: in decode it multiplies queries and outputs.
    """
    total = np.zeros(np.shape(tokens_G))
    for inner, outer in _matrices(model, tp):
        total = total + roofline.gemm_seconds(
            hardware, tokens_G, inner=inner, outer=outer, element_type=model.dense_type
        )
    rotated = 2 * 2 * _split(model.attention.heads, tp) * model.attention.head_dim + 2 * model.kv_bytes_per_token
    return total + roofline.elementwise_seconds(hardware, tokens_G, row_bytes=rotated)


def core_seconds(
    model: ModelShape,
    hardware: Hardware,
    *,
    phase: str,
    tokens_G: npt.ArrayLike,
    keys_G: npt.ArrayLike,
    tp: int = 1,
) -> Float:
    """Scores, softmax and weighted sum of one layer: 2 FLOP per element of each (query, key) and (query, value) pair.

    Decode reads each token's keys from the cache; prefill reads them once per tile of 128 queries.
    """
    shape = model.attention
    tokens, keys = np.asarray(tokens_G, np.float64), np.asarray(keys_G, np.float64)
    heads = _split(shape.heads, tp)
    if shape.kind == "mla" and phase == "decode":
        pair_flop = 2 * heads * (2 * shape.kv_rank + shape.rope_dim)
        key_bytes: float = model.kv_bytes_per_token
        row_bytes = 2 * heads * (2 * shape.kv_rank + shape.rope_dim)
    else:
        pair_flop = 2 * heads * (shape.head_dim + shape.value_dim)
        kv_heads = heads if shape.kind == "mla" else _split(shape.kv_heads, tp)
        kv_type = "bf16" if shape.kind == "mla" else model.kv_type
        key_bytes = element_types.row_bytes(kv_type, kv_heads * (shape.head_dim + shape.value_dim))
        row_bytes = 2 * heads * (shape.head_dim + shape.value_dim)
    if phase == "prefill":
        key_bytes /= QUERY_TILE
    seconds = roofline.kernel_seconds(
        hardware,
        flop=keys * pair_flop,
        traffic_bytes=keys * key_bytes + tokens * row_bytes,
        element_type="bf16",
        kernel="attention",
    )
    return roofline.launched(hardware, seconds, tokens, 1)


def _split(heads: int, tp: int) -> int:
    """Heads on one of `tp` ranks; fewer heads than ranks are repeated."""
    return -(-heads // tp)


def _matrices(model: ModelShape, tp: int) -> list[tuple[int, int]]:
    """(inner, outer) of one rank's projections; what makes the latent vectors is on every rank."""
    shape, hidden, heads = model.attention, model.hidden, _split(model.attention.heads, tp)
    out = (heads * shape.value_dim, hidden)
    if shape.kind != "mla":
        kv_heads = _split(shape.kv_heads, tp)
        return [(hidden, heads * shape.head_dim + kv_heads * (shape.head_dim + shape.value_dim)), out]
    queries = heads * shape.head_dim
    expand = (shape.kv_rank, heads * (shape.nope_dim + shape.value_dim))
    if shape.q_rank:
        return [(hidden, shape.q_rank + shape.kv_width), (shape.q_rank, queries), expand, out]
    return [(hidden, queries + shape.kv_width), expand, out]
