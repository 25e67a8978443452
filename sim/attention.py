"""What one layer's attention costs, by kind.

Sources: FLOP and KV traffic of multi-head and grouped-query attention (arXiv 2305.13245);
multi-head latent attention and its absorbed form (arXiv 2405.04434, 2.1 and appendix C): prefill
expands the latent vectors into heads, decode keeps them and moves the expansion into the queries
and the output; keys are read once per tile of queries (FlashAttention-2, arXiv 2307.08691).

Axes: G rank; arrays may have any axes in front.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim import element_types
from moecast.sim.attention_shape import AttentionShape, LinearAttention, Mixer
from moecast.sim.cost import AttentionCore, AttentionProducts, RecurrentState, costs_of, roofline

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]


def attention_seconds(
    model: ModelShape,
    hardware: Hardware,
    *,
    phase: str,
    tokens_G: npt.ArrayLike,
    context_sum_G: npt.ArrayLike,
    window_sum_G: npt.ArrayLike | None = None,
    mixer: Mixer | None = None,
    tp: int = 1,
    queries: float = 1.0,
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
        For a sliding-window or sparse layer: the same with at most as many keys per token as it
        reads, which then counts instead; an indexer scores all keys.
    mixer
        What the layer has; None: the model's own attention.
    tp
        Ranks that share the heads; each computes its part for the same tokens.
    queries
        Decode: tokens of a sequence, drafts that are verified at once, which share one reading of
        its keys.
    """
    tokens = np.asarray(tokens_G, np.float64)
    shape = model.attention if mixer is None else mixer
    if isinstance(shape, LinearAttention):
        return linear_seconds(model, hardware, shape, phase=phase, tokens_G=tokens, tp=tp, queries=queries)
    keys = np.asarray(context_sum_G if window_sum_G is None else window_sum_G, np.float64)
    total = projection_seconds(model, hardware, tokens, shape=shape, tp=tp, phase=phase)
    total = total + core_seconds(
        model, hardware, phase=phase, tokens_G=tokens, keys_G=keys, shape=shape, tp=tp, queries=queries
    )
    if shape.index_heads:
        scored = np.asarray(context_sum_G, np.float64) / max(shape.compress, 1)
        total = total + index_seconds(
            model, hardware, shape, phase=phase, tokens_G=tokens, keys_G=scored, queries=queries
        )
    return total


def linear_seconds(
    model: ModelShape,
    hardware: Hardware,
    shape: LinearAttention,
    *,
    phase: str,
    tokens_G: npt.ArrayLike,
    tp: int = 1,
    queries: float = 1.0,
) -> Float:
    """One layer of linear attention: projections, the short convolution, and the recurrence."""
    tokens, costs = np.asarray(tokens_G, np.float64), costs_of(hardware)
    total = np.zeros(np.shape(tokens))
    *into, (last_inner, last_outer) = shape.projections
    cut = [*((inner, _split(outer, tp)) for inner, outer in into), (_split(last_inner, tp), last_outer)]
    for inner, outer in cut:
        total = total + costs.gemm_seconds(tokens, inner=inner, outer=outer, element_type=model.mixer_type)
    state = RecurrentState(
        heads=_split(shape.heads, tp),
        key_dim=shape.key_dim,
        value_dim=shape.value_dim,
        channels=_split(shape.conv_channels, tp) or model.hidden,
    )
    return total + costs.state_seconds(state, phase=phase, tokens_G=tokens, queries=queries)


def index_seconds(
    model: ModelShape,
    hardware: Hardware,
    shape: AttentionShape,
    *,
    phase: str,
    tokens_G: npt.ArrayLike,
    keys_G: Float,
    queries: float = 1.0,
) -> Float:
    """Score all keys by the indexer's heads and choose the best: projections, one product and a top-k.

    Every rank of those that share heads does all of it: the indexer has one key a token.
    """
    tokens, width = np.asarray(tokens_G, np.float64), shape.index_heads * shape.index_dim
    total = costs_of(hardware).gemm_seconds(
        tokens, inner=shape.q_rank or model.hidden, outer=width, element_type=model.mixer_type
    )
    total = total + costs_of(hardware).gemm_seconds(
        tokens,
        inner=model.hidden,
        outer=shape.index_key_outputs + shape.index_heads,
        element_type=model.mixer_type,
    )
    key_bytes = shape.index_dim / roofline.readers(phase, queries)  # one byte an element: FP8 keys
    scores = roofline.kernel_seconds(
        hardware, flop=2.0 * keys_G * width, traffic_bytes=keys_G * key_bytes, element_type="fp8", kernel="attention"
    )
    chosen = roofline.memory_seconds(hardware, 4.0 * keys_G)
    return total + roofline.launched(hardware, scores + chosen, tokens, 2)


def projection_seconds(
    model: ModelShape,
    hardware: Hardware,
    tokens_G: npt.ArrayLike,
    *,
    shape: AttentionShape | None = None,
    tp: int = 1,
    phase: str = "prefill",
) -> Float:
    """Multiply into queries, keys, values and back, and rotate and fill the KV cache beside; one layer."""
    products = _products(model, model.attention if shape is None else shape, tp)
    return costs_of(hardware).projection_seconds(products, tokens_G, phase=phase)


def _products(model: ModelShape, shape: AttentionShape, tp: int) -> AttentionProducts:
    return AttentionProducts(
        core=AttentionCore.of(model, shape, tp=tp),
        matrices=tuple(projection_matrices(model, shape, tp=tp)),
        element_type=model.mixer_type,
        moved_bytes=rotation_bytes(model, shape, tp=tp),
    )


def rotation_bytes(model: ModelShape, shape: AttentionShape, *, tp: int = 1) -> int:
    """Bytes that move to rotate a token's queries and keys and to put its keys and values where attention reads."""
    kept = element_types.cache_bytes(model.kv_type, shape.kv_width)
    return 2 * 2 * _split(shape.heads, tp) * shape.head_dim + 2 * kept


def into_seconds(
    model: ModelShape,
    hardware: Hardware,
    tokens_G: npt.ArrayLike,
    *,
    shape: AttentionShape,
    tp: int = 1,
    phase: str = "prefill",
) -> Float:
    """The part of `projection_seconds` before the core: all but the multiplications of what attention gives."""
    products = _products(model, shape, tp)
    into = replace(products, matrices=products.matrices[: -2 if shape.out_rank else -1])
    return costs_of(hardware).projection_seconds(into, tokens_G, phase=phase)


def core_seconds(
    model: ModelShape,
    hardware: Hardware,
    *,
    phase: str,
    tokens_G: npt.ArrayLike,
    keys_G: npt.ArrayLike,
    shape: AttentionShape | None = None,
    tp: int = 1,
    queries: float = 1.0,
) -> Float:
    """Scores, softmax and weighted sum of one layer."""
    core = AttentionCore.of(model, model.attention if shape is None else shape, tp=tp)
    return costs_of(hardware).core_seconds(core, phase=phase, tokens_G=tokens_G, keys_G=keys_G, queries=queries)


def _split(heads: int, tp: int) -> int:
    """Heads on one of `tp` ranks; fewer heads than ranks are repeated."""
    return -(-heads // tp)


def projection_matrices(model: ModelShape, shape: AttentionShape, *, tp: int = 1) -> list[tuple[int, int]]:
    """(inner, outer) of one rank's projections; what makes latent vectors or compressed queries is on every rank."""
    hidden, heads = model.hidden, _split(shape.heads, tp)
    out, gate = [(heads * shape.value_dim, hidden)], _split(shape.gate_width, tp) + 2 * shape.compress_width
    if shape.out_rank:
        wide = _split(shape.out_groups, tp) * shape.out_rank
        out = [(shape.heads * shape.value_dim // shape.out_groups, wide), (wide, hidden)]
    queries = heads * shape.head_dim
    if shape.kind != "mla":
        wide = _split(shape.kv_heads, tp) * (shape.kv_projection // shape.kv_heads) + gate
        if shape.q_rank:
            return [(hidden, shape.q_rank + wide), (shape.q_rank, queries), *out]
        return [(hidden, queries + wide), *out]
    latent = shape.kv_rank + shape.rope_dim
    expand = (shape.kv_rank, heads * (shape.nope_dim + shape.value_dim))
    if shape.q_rank:
        return [(hidden, shape.q_rank + latent + gate), (shape.q_rank, queries), expand, *out]
    return [(hidden, queries + latent + gate), expand, *out]
