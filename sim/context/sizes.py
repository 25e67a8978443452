"""Bytes of what ranks that share sequences send each other, for each token and layer, on one rank.

A serving engine sends what its cache keeps: keys and values, or MLA's latent vectors, which each
rank expands itself (SGLang's and vLLM's prefill). In training keys and values travel as attention
takes them, in bf16, those of MLA expanded (Megatron-LM with TransformerEngine). Ranks of tensor
parallelism send their own heads; latent vectors are the same on all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecast.sim import element_types
from moecast.sim.attention_shape import AttentionShape

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape

SUM_BYTES = 4
"""The logarithm of a sum of exponents, a head: float32."""


def cached_bytes(model: ModelShape, shape: AttentionShape, *, tp: int = 1) -> float:
    """A token's entry in the cache of one layer, this rank's heads of it."""
    width = shape.kv_width if shape.own_kv else shape.cached_width
    return element_types.cache_bytes(model.kv_type, width) / (1 if shape.kind == "mla" else min(tp, shape.kv_heads))


def expanded_bytes(shape: AttentionShape, *, tp: int = 1) -> int:
    """A token's keys and values as attention's core takes them in training."""
    heads = shape.heads if shape.kind == "mla" else shape.kv_heads
    return 2 * -(-heads // tp) * (shape.head_dim + shape.value_dim)


def query_bytes(shape: AttentionShape, *, tp: int = 1, absorbed: bool = False) -> int:
    """A token's queries; `absorbed`: against latent vectors."""
    return 2 * -(-shape.heads // tp) * (shape.kv_rank + shape.rope_dim if absorbed else shape.head_dim)


def output_bytes(shape: AttentionShape, *, tp: int = 1, absorbed: bool = False) -> int:
    """What was attended to for a token, with what it takes to add several such up."""
    return -(-shape.heads // tp) * (2 * (shape.kv_rank if absorbed else shape.value_dim) + SUM_BYTES)


def merge_bytes(shape: AttentionShape, *, tp: int = 1, absorbed: bool = False) -> int:
    """What moves to add one such to the sum, which is read and written in float32."""
    wide = shape.kv_rank if absorbed else shape.value_dim
    return -(-shape.heads // tp) * (2 + 4 + 4) * wide
