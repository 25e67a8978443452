"""Kinds of attention and their sizes.

Sources: multi-head and grouped-query attention (arXiv 2305.13245); multi-head latent attention (DeepSeek-V2,
arXiv 2405.04434, 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

AttentionKind = Literal["mha", "gqa", "mla"]
KINDS: tuple[str, ...] = get_args(AttentionKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """The attention of one layer.

    Parameters
    ----------
    kind
        `mha`: every query head has its key head; `gqa`: groups share one; `mla`: one latent vector for all heads.
    heads, kv_heads
        Query heads; key/value heads.
    head_dim, value_dim
        Width of a query or key head (MLA: its part without position plus its rotary part); of a value head.
    q_rank, kv_rank, rope_dim
        MLA: width of the compressed query (0: queries are not compressed), of the latent KV vector, and of the rotary
        key that all heads share.
    window, windowed_layers
        Keys that a sliding-window layer looks back on, the token itself included; which hidden layers slide.

    Raises
    ------
    ValueError
        An unknown kind or sizes that do not fit each other.
    """

    kind: AttentionKind
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    q_rank: int = 0
    kv_rank: int = 0
    rope_dim: int = 0
    window: int | None = None
    windowed_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.kind not in KINDS:
            raise ValueError(f"kind = {self.kind!r}: one of {', '.join(KINDS)}")
        for field in ("heads", "kv_heads", "head_dim", "value_dim"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} = {getattr(self, field)}: must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads = {self.kv_heads}: must divide the {self.heads} query heads")
        if self.kind == "mla" and (self.kv_rank < 1 or self.rope_dim < 1 or self.rope_dim >= self.head_dim):
            raise ValueError(f"mla needs kv_rank = {self.kv_rank} and 0 < rope_dim = {self.rope_dim} < head_dim")
        if self.windowed_layers and (self.window is None or self.window < 1):
            raise ValueError(f"window = {self.window}: sliding-window layers need a window of at least 1")

    @property
    def nope_dim(self) -> int:
        """Width of a query head's part without position."""
        return self.head_dim - self.rope_dim

    @property
    def kv_width(self) -> int:
        """Elements that one token adds to one layer's KV cache."""
        if self.kind == "mla":
            return self.kv_rank + self.rope_dim
        return self.kv_heads * (self.head_dim + self.value_dim)

    def parameters(self, hidden: int) -> int:
        """Weights of one layer's projections; biases and norms left out."""
        out = self.heads * self.value_dim * hidden
        if self.kind != "mla":
            return hidden * (self.heads * self.head_dim + self.kv_width) + out
        queries = self.heads * self.head_dim
        query = self.q_rank * (hidden + queries) if self.q_rank else hidden * queries
        expand = self.kv_rank * self.heads * (self.nope_dim + self.value_dim)
        return query + hidden * self.kv_width + expand + out

    def repeated(self, n_layers: int, total: int) -> AttentionShape:
        """Continue the pattern of the windows of `n_layers` hidden layers over `total` of them."""
        slides = set(self.windowed_layers)
        return replace(self, windowed_layers=tuple(layer for layer in range(total) if layer % n_layers in slides))

    def window_of(self, layer_id: int) -> int | None:
        """Return the window of a hidden layer; None where it attends to the whole context."""
        return self.window if layer_id in self.windowed_layers else None
