"""What a forecast asks of a model of kernels; `costs_of` gives the one that a hardware table names.

Axes: G rank, P slot; arrays may have any axes in front.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moecast.sim.cost.shapes import AttentionCore, AttentionProducts, ExpertBlock, RecurrentState

Float = npt.NDArray[np.float64]


class KernelCosts(Protocol):
    """Seconds of kernels on one kind of GPU, launches included; 0 where there is nothing to do.

    None of them falls when work is added, but those of a user's tables where measured times do.
    """

    def gemm_seconds(
        self, rows_G: npt.ArrayLike, *, inner: int, outer: int, element_type: str, quantised: bool = False
    ) -> Float:
        """Multiply [rows, inner] by weights [inner, outer] of an element type.

        `quantised`: rows come in that type already; else bf16 ones are quantised on the way, where
        weights are FP8.
        """
        ...

    def elementwise_seconds(self, rows_G: npt.ArrayLike, *, row_bytes: float, kernels: int = 1) -> Float:
        """Kernels that only move memory: `row_bytes` per row over all of them."""
        ...

    def expert_seconds(
        self,
        block: ExpertBlock,
        load_GP: npt.ArrayLike,
        *,
        phase: str,
        sms: int | None = None,
        seen_G: npt.ArrayLike | None = None,
    ) -> Float:
        """Run one layer's routed experts on each rank: [..., G, P] choices served in each slot, to [..., G] seconds.

        `sms`: that communication leaves; None: all. `seen_G`: choices that the kernels are shown,
        those of other ranks among them; None: only those that are served here. Empty kernels are
        launched, too.
        """
        ...

    def expert_floor_seconds(
        self, block: ExpertBlock, rows: npt.ArrayLike, hits: npt.ArrayLike, *, phase: str, seen: npt.ArrayLike = 0.0
    ) -> Float:
        """At most what `expert_seconds` says of any loads with so many rows on so many experts.

        `seen`: choices that every rank's kernels are shown at the least. Convex and rising in rows
        and experts, so that its value at a mean is below the mean of its values (Jensen).
        """
        ...

    def partition_floor_seconds(
        self, block: ExpertBlock, load_E: npt.NDArray[np.int64], *, ranks: int, slots: int, phase: str
    ) -> tuple[float, float]:
        """At most the mean over ranks that hold each expert once, and at most any rank that holds `slots` of them."""
        ...

    def projection_seconds(self, products: AttentionProducts, tokens_G: npt.ArrayLike, *, phase: str) -> Float:
        """The products around an attention core, and the kernels beside them: rotation, norms, filling the cache."""
        ...

    def state_seconds(
        self,
        state: RecurrentState,
        *,
        phase: str,
        tokens_G: npt.ArrayLike,
        queries: float = 1.0,
    ) -> Float:
        """Linear attention without its products: the short convolution and the recurrence over states."""
        ...

    def core_seconds(
        self, core: AttentionCore, *, phase: str, tokens_G: npt.ArrayLike, keys_G: npt.ArrayLike, queries: float = 1.0
    ) -> Float:
        """Attend: tokens on each rank, and keys that they read in all.

        `queries`: in decode, tokens of a sequence, which share one reading of its keys.
        """
        ...
