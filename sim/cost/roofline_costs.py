"""All kernels by the roofline: for GPUs of which nothing was measured, or of which a user knows the reached parts.

Axes: G rank, P slot; arrays may have any axes in front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.cost import expert_roofline, roofline

if TYPE_CHECKING:
    from moecast.sim.cost.shapes import AttentionCore, AttentionProducts, ExpertBlock, RecurrentState
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

CHUNK = 64  # tokens that linear attention's prefill kernels take at once (flash-linear-attention)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Every kernel by the roofline, with one reached part of each peak for all shapes (`Hardware.efficiency`)."""

    hardware: Hardware

    def gemm_seconds(
        self,
        rows_G: npt.ArrayLike,
        *,
        inner: int,
        outer: int,
        element_type: str,
        quantised: bool = False,  # noqa: ARG002  a roofline leaves quantisation out
    ) -> Float:
        """As of `KernelCosts`."""
        return roofline.gemm_seconds(self.hardware, rows_G, inner=inner, outer=outer, element_type=element_type)

    def elementwise_seconds(self, rows_G: npt.ArrayLike, *, row_bytes: float, kernels: int = 1) -> Float:
        """As of `KernelCosts`."""
        return roofline.elementwise_seconds(self.hardware, rows_G, row_bytes=row_bytes, kernels=kernels)

    def expert_seconds(
        self,
        block: ExpertBlock,
        load_GP: npt.ArrayLike,
        *,
        phase: str,
        sms: int | None = None,
        seen_G: npt.ArrayLike | None = None,  # noqa: ARG002  a roofline does nothing for the choices of other ranks
    ) -> Float:
        """As of `KernelCosts`."""
        return expert_roofline.expert_seconds(block, self.hardware, load_GP, phase=phase, sms=sms)

    def expert_floor_seconds(
        self, block: ExpertBlock, rows: npt.ArrayLike, hits: npt.ArrayLike, *, phase: str, seen: npt.ArrayLike = 0.0
    ) -> Float:
        """As of `KernelCosts`; `seen` costs nothing."""
        del seen
        return expert_roofline.expert_floor_seconds(block, self.hardware, rows, hits, phase=phase)

    def partition_floor_seconds(
        self, block: ExpertBlock, load_E: npt.NDArray[np.int64], *, ranks: int, slots: int, phase: str
    ) -> tuple[float, float]:
        """As of `KernelCosts`: the floor at the mean of rows and of experts hit, and at the least `slots` of them."""
        hit_E = load_E > 0
        sums = (
            (float(load_E.sum()) / ranks, float(hit_E.sum()) / ranks),
            (float(np.sort(load_E)[:slots].sum()), float(np.sort(hit_E)[:slots].sum())),
        )
        mean_s, least_s = (float(self.expert_floor_seconds(block, rows, hits, phase=phase)) for rows, hits in sums)
        return mean_s, least_s

    def core_seconds(
        self, core: AttentionCore, *, phase: str, tokens_G: npt.ArrayLike, keys_G: npt.ArrayLike, queries: float = 1.0
    ) -> Float:
        """As of `KernelCosts`."""
        return roofline.core_seconds(
            core, self.hardware, phase=phase, tokens_G=tokens_G, keys_G=keys_G, queries=queries
        )

    def projection_seconds(self, products: AttentionProducts, tokens_G: npt.ArrayLike, *, phase: str) -> Float:
        """As of `KernelCosts`; latent attention's expansion costs the same in both phases."""
        del phase
        total = np.zeros(np.shape(tokens_G))
        for inner, outer in products.matrices:
            total = total + self.gemm_seconds(tokens_G, inner=inner, outer=outer, element_type=products.element_type)
        return total + self.elementwise_seconds(tokens_G, row_bytes=products.moved_bytes)

    def state_seconds(
        self, state: RecurrentState, *, phase: str, tokens_G: npt.ArrayLike, queries: float = 1.0
    ) -> Float:
        """As of `KernelCosts`.

        Decode reads and writes each sequence's state once (float32). Prefill works in chunks of 64
        tokens: inside a chunk like attention, between chunks through the state, which moves once a
        chunk.
        """
        tokens = np.asarray(tokens_G, np.float64)
        total = self.elementwise_seconds(tokens, row_bytes=2 * 2 * state.channels)
        if not state.elements:
            return total
        if phase == "decode":
            flop, moved = 6.0 * state.elements * tokens, 2.0 * 4 * state.elements * tokens / queries
        else:
            inside = 2.0 * CHUNK * state.heads * (state.key_dim + state.value_dim)
            flop, moved = (inside + 4.0 * state.elements) * tokens, (2.0 * 4 * state.elements / CHUNK) * tokens
        seconds = roofline.kernel_seconds(
            self.hardware, flop=flop, traffic_bytes=moved, element_type="bf16", kernel="attention"
        )
        return total + roofline.launched(self.hardware, seconds, tokens, 2)
