"""The kernels of a step that are more than a GEMM: their sizes on one rank, after everything that cuts them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moecast.sim.element_types import cache_bytes, multiply_type, row_bytes, weight_bytes

if TYPE_CHECKING:
    from moecast.sim.attention_shape import AttentionShape
    from moecast.sim.model import ModelShape
    from moecast.topology import Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertBlock:
    """The routed experts of one layer on one rank.

    Parameters
    ----------
    width, inner
        Elements of a row that comes in and goes out; of an expert's inner rows, on this rank.
    ups
        Matrices that multiply what comes in: 2 with a gate, else 1.
    weight_type
        Element type of the weights.
    choices, experts
        Experts that a token chooses, of how many: what a benchmark of the whole layer is told.
    """

    width: int
    inner: int
    ups: int
    weight_type: str
    choices: int = 1
    experts: int = 1

    @classmethod
    def of(cls, model: ModelShape, *, etp: int = 1) -> ExpertBlock:
        """The experts of a model, cut by width over `etp` ranks."""
        return cls(
            width=model.expert_width,
            inner=-(-model.expert_intermediate // etp),
            ups=model.mlp_matrices - 1,
            weight_type=model.weight_type,
            choices=model.choices,
            experts=model.experts,
        )

    @property
    def matrices(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(inner, outer) of the two grouped GEMMs."""
        return (self.width, self.ups * self.inner), (self.inner, self.width)

    def matrix_bytes(self, inner: int, outer: int) -> float:
        """Bytes of one expert's weights in one of the GEMMs."""
        return inner * outer * weight_bytes(self.weight_type)

    def row_bytes(self, hardware: Hardware, width: int) -> int:
        """Bytes of a row that goes into a GEMM: FP8 with scales where the GEMM multiplies FP8."""
        return row_bytes(multiply_type(self.weight_type, hardware.peak_flop_per_s), width)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCore:
    """Scores, softmax and weighted sum of one layer on one rank, without projections.

    Parameters
    ----------
    latent
        Multi-head latent attention; in decode its absorbed form, whose keys are the latent vectors.
    heads, kv_heads
        Query heads and key/value heads of this rank.
    head_dim, value_dim
        Width of a query or key head; of a value head.
    cached_width
        Elements of one key head and its value in the cache; less than both where one vector is kept
        for the two.
    kv_rank, rope_dim
        MLA: of the latent vector and the rotary key.
    kv_type
        Element type of the cache.
    window
        Keys that a token looks back on; None: all.
    module_type
        MLA: element type of the products around it, by which whole modules were measured; empty:
        none around it.
    """

    latent: bool
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    cached_width: int
    kv_rank: int = 0
    rope_dim: int = 0
    kv_type: str = "bf16"
    window: int | None = None
    module_type: str = ""

    @classmethod
    def of(cls, model: ModelShape, shape: AttentionShape, *, tp: int = 1, window: int | None = None) -> AttentionCore:
        """The attention of a model's layer, its heads cut over `tp` ranks; fewer heads than ranks are repeated."""
        heads = -(-shape.heads // tp)
        latent = shape.kind == "mla"
        return cls(
            latent=latent,
            heads=heads,
            kv_heads=heads if latent else -(-shape.kv_heads // tp),
            head_dim=shape.head_dim,
            value_dim=shape.value_dim,
            cached_width=shape.cached_width // shape.kv_heads,
            kv_rank=shape.kv_rank,
            rope_dim=shape.rope_dim,
            kv_type=model.kv_type,
            window=window,
            module_type=model.mixer_type if latent else "",
        )

    def absorbed(self, phase: str) -> bool:
        """Whether it runs over latent vectors."""
        return self.latent and phase == "decode"

    def pair_flop(self, phase: str) -> int:
        """FLOP of one (query, key) pair: 2 per element of the product with the key and with the value."""
        wide = 2 * self.kv_rank + self.rope_dim if self.absorbed(phase) else self.head_dim + self.value_dim
        return 2 * self.heads * wide

    def key_bytes(self, phase: str) -> int:
        """Bytes of a key and its value where the kernel reads them; prefill of MLA reads expanded heads in bf16."""
        if self.absorbed(phase):
            return cache_bytes(self.kv_type, self.kv_rank + self.rope_dim)
        return cache_bytes("bf16" if self.latent else self.kv_type, self.kv_heads * self.cached_width)

    def query_bytes(self, phase: str) -> int:
        """Bytes of a query and of its output."""
        wide = 2 * self.kv_rank + self.rope_dim if self.absorbed(phase) else self.head_dim + self.value_dim
        return 2 * self.heads * wide


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionProducts:
    """What stands around an attention core on one rank: products into it and out of it, and kernels beside them.

    Parameters
    ----------
    core
        Of the same layer.
    matrices
        (inner, outer) of the products, in order; of multi-head latent attention the one that makes
        heads of latent vectors among them, which decode takes as two batched products of queries
        and outputs.
    element_type
        Of the weights.
    moved_bytes
        Bytes that move for each token to rotate queries and keys and to fill the cache.
    """

    core: AttentionCore
    matrices: tuple[tuple[int, int], ...]
    element_type: str
    moved_bytes: int

    @property
    def expand(self) -> tuple[int, int] | None:
        """The product that makes heads of latent vectors; None without."""
        wanted = (self.core.kv_rank, self.core.heads * (self.core.head_dim - self.core.rope_dim + self.core.value_dim))
        return wanted if self.core.latent and wanted in self.matrices else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentState:
    """Linear attention of one layer on one rank, without its projections.

    Parameters
    ----------
    heads, key_dim, value_dim
        The state: a matrix of each head; no heads: a convolution alone.
    channels
        Of the short convolution.
    """

    heads: int
    key_dim: int
    value_dim: int
    channels: int

    @property
    def elements(self) -> int:
        """Elements that a sequence keeps."""
        return self.heads * self.key_dim * self.value_dim
