"""Kinds of attention and their sizes: what mixes the tokens of a layer.

Sources: multi-head and grouped-query attention (arXiv 2305.13245); multi-head latent attention
(DeepSeek-V2, arXiv 2405.04434, 2.1); sparse attention by an indexer (DeepSeek-V3.2, arXiv
2512.02556); gated delta networks (arXiv 2412.06464), Kimi's delta attention (arXiv 2510.26692),
lightning attention (arXiv 2401.04658), Mamba and Mamba-2 (arXiv 2312.00752, 2405.21060).
"""

from __future__ import annotations

from collections.abc import Mapping
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
        `mha`: every query head has its key head; `gqa`: groups share one; `mla`: one latent vector
        for all heads.
    heads, kv_heads
        Query heads; key/value heads.
    head_dim, value_dim
        Width of a query or key head (MLA: its part without position plus its rotary part); of a
        value head.
    q_rank, kv_rank, rope_dim
        MLA: width of the compressed query (0: queries are not compressed), of the latent KV vector,
        and of the rotary key that all heads share.
    gate_width
        Elements of the gate on the output that is projected from the hidden vector; 0: none.
    own_kv
        Whether the layer has keys and values of its own; if not, it reads those of a layer before
        it, and adds nothing to the cache.
    own_values
        Whether values have a projection of their own; if not, they are made of the keys.
    one_vector
        Whether a key is kept once and is the value too.
    compress, compress_width
        Compressed attention: beside its window a token reads keys that stand for so many tokens
        each (of `sparse_keys` at most, where there is an indexer), and each is made of so many
        elements and gates a token. 0: none.
    out_rank, out_groups
        Output through so many groups of this rank each; 0: one matrix.
    window, windowed_layers
        Keys that a sliding-window layer looks back on, the token itself included; which hidden
        layers slide.
    sparse_keys, index_heads, index_dim
        Sparse attention: how many keys a token reads at most, chosen by an indexer of so many heads
        of this width that scores all keys (no heads: the keys are those that a layer before it
        chose). 0: dense.

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
    gate_width: int = 0
    sparse_keys: int = 0
    index_heads: int = 0
    index_dim: int = 0
    own_kv: bool = True
    own_values: bool = True
    one_vector: bool = False
    compress: int = 0
    compress_width: int = 0
    out_rank: int = 0
    out_groups: int = 1
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
        if self.kind == "mla" and (self.kv_rank < 1 or not 0 <= self.rope_dim < self.head_dim):
            raise ValueError(f"mla needs kv_rank = {self.kv_rank} and 0 <= rope_dim = {self.rope_dim} < head_dim")
        if self.kind == "mla" and not (self.own_kv and self.own_values):
            raise ValueError("mla has one latent vector for keys and values, and each layer its own")
        if self.sparse_keys and (self.index_heads < 1) != (self.index_dim < 1):
            raise ValueError(f"sparse_keys = {self.sparse_keys}: an indexer needs heads and a width")
        if self.compress and (self.compress_width < 1 or self.window is None or self.kind == "mla"):
            raise ValueError(f"compress = {self.compress}: needs a window, the width of its compressor, and heads")
        if self.out_rank and (self.out_groups < 1 or self.heads * self.value_dim % self.out_groups):
            raise ValueError(f"out_groups = {self.out_groups}: must divide the {self.heads * self.value_dim} outputs")
        if self.windowed_layers and (self.window is None or self.window < 1):
            raise ValueError(f"window = {self.window}: sliding-window layers need a window of at least 1")

    @property
    def nope_dim(self) -> int:
        """Width of a query head's part without position."""
        return self.head_dim - self.rope_dim

    @property
    def kv_width(self) -> int:
        """Elements that one token adds to one layer's KV cache, an indexer's key among them."""
        if not self.own_kv:
            return 0
        index = self.index_dim if self.sparse_keys else 0
        if self.kind == "mla":
            return self.kv_rank + self.rope_dim + index
        return self.cached_width + index

    @property
    def cached_width(self) -> int:
        """Elements of one key and its value in the cache (MLA and an indexer's key apart)."""
        return self.kv_heads * (self.head_dim + (0 if self.one_vector else self.value_dim))

    def reads_of(self, layer_id: int) -> tuple[tuple[int | None, int], ...]:
        """Return which keys a token of a hidden layer reads: (at most so many, None: all; one key for so many)."""
        if not self.compress:
            return ((self.keys_read_of(layer_id), 1),)
        return ((self.window, 1), (self.sparse_keys * self.compress or None, self.compress))

    def keeps_of(self, layer_id: int) -> tuple[tuple[int | None, int, int], ...]:
        """Return what the cache of a hidden layer keeps: keys as of `reads_of`, and the elements of each."""
        if not self.compress:
            return ((self.window_of(layer_id), 1, self.kv_width),)
        return ((self.window, 1, self.cached_width), (None, self.compress, self.kv_width))

    @property
    def kv_projection(self) -> int:
        """Elements of keys and values that a layer projects from the hidden vector (MLA apart)."""
        return self.own_kv * self.kv_heads * (self.head_dim + self.own_values * self.value_dim)

    def parameters(self, hidden: int) -> int:
        """Weights of one layer's projections; biases and norms left out."""
        out = self.heads * self.value_dim * (self.out_rank or hidden) + self.out_rank * self.out_groups * hidden
        out += self.compress_width * (2 * hidden + self.compress)
        queries = self.heads * self.head_dim
        query = self.q_rank * (hidden + queries) if self.q_rank else hidden * queries
        more = hidden * self.gate_width + self._index_parameters(hidden)
        if self.kind != "mla":
            return query + hidden * self.kv_projection + out + more
        expand = self.kv_rank * self.heads * (self.nope_dim + self.value_dim)
        return query + hidden * (self.kv_rank + self.rope_dim) + expand + out + more

    def _index_parameters(self, hidden: int) -> int:
        """The indexer's queries (of the compressed ones, where there are such), its key and its heads' weights."""
        if not self.sparse_keys:
            return 0
        key = hidden * self.index_key_outputs + 2 * self.compress * self.index_dim
        return (self.q_rank or hidden) * self.index_heads * self.index_dim + key + hidden * self.index_heads

    @property
    def index_key_outputs(self) -> int:
        """Elements that an indexer projects of a token for its key: of compressed ones two series and their gates."""
        return self.index_dim * (4 if self.compress else 1)

    def repeated(self, n_layers: int, total: int) -> AttentionShape:
        """Continue the pattern of the windows of `n_layers` hidden layers over `total` of them."""
        slides = set(self.windowed_layers)
        return replace(self, windowed_layers=tuple(layer for layer in range(total) if layer % n_layers in slides))

    def renumbered(self, number_of: Mapping[int, int]) -> AttentionShape:
        """Keep the windows of some hidden layers, under other numbers."""
        kept = tuple(number_of[layer] for layer in self.windowed_layers if layer in number_of)
        return replace(self, windowed_layers=kept)

    def window_of(self, layer_id: int) -> int | None:
        """Return the window of a hidden layer; None where it attends to the whole context."""
        return self.window if layer_id in self.windowed_layers else None

    def keys_read_of(self, layer_id: int) -> int | None:
        """Return how many keys a token of a hidden layer reads at most; None: all of them."""
        limits = [limit for limit in (self.window_of(layer_id), self.sparse_keys or None) if limit is not None]
        return min(limits, default=None)


LinearKind = Literal["gated_delta", "kda", "lightning", "mamba", "mamba2", "conv"]
LINEAR_KINDS: tuple[str, ...] = get_args(LinearKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """A layer that keeps a state of fixed size for each sequence in the place of keys and values.

    Parameters
    ----------
    kind
        What it is, for people.
    heads, key_dim, value_dim
        The state: a [key_dim, value_dim] matrix of each head.
    projections
        (inner, outer) of its matrices, the last one back to the hidden width.
    conv_channels, conv_width
        Of the short convolution before the recurrence; 0: none.
    """

    kind: LinearKind
    heads: int
    key_dim: int
    value_dim: int
    projections: tuple[tuple[int, int], ...]
    conv_channels: int = 0
    conv_width: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.kind not in LINEAR_KINDS:
            raise ValueError(f"kind = {self.kind!r}: one of {', '.join(LINEAR_KINDS)}")
        for field in ("heads", "key_dim", "value_dim"):
            if getattr(self, field) < (0 if self.kind == "conv" else 1):
                raise ValueError(f"{field} = {getattr(self, field)}: must be at least 1")
        if any(size < 1 for pair in self.projections for size in pair):
            raise ValueError(f"projections = {self.projections}: sizes of at least 1")

    @property
    def state_elements(self) -> int:
        """Elements that one sequence keeps at one layer, the convolution's last inputs among them."""
        return self.heads * self.key_dim * self.value_dim + self.conv_channels * max(self.conv_width - 1, 0)

    def parameters(self, hidden: int) -> int:  # noqa: ARG002  as of other kinds
        """Weights of one layer; biases, norms and decays left out."""
        return sum(inner * outer for inner, outer in self.projections) + self.conv_channels * self.conv_width


Mixer = AttentionShape | LinearAttention
