"""Kernels by parameters that were fitted on measured ones, family by family.

Docs/cost.md says how far off each is.

What no family covers is priced by the roofline. Axes: G rank, P slot; arrays may have any axes in
front.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.cost import (
    attention,
    gemm,
    grouped,
    grouped_parameters,
    linear_attention,
    mla_bmm,
    mla_module,
    quantise,
)
from moecast.sim.cost.roofline_costs import Roofline
from moecast.sim.engines import find_engine

if TYPE_CHECKING:
    from moecast.sim.cost.entries import Entry
    from moecast.sim.cost.shapes import AttentionCore, AttentionProducts, ExpertBlock, RecurrentState
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

# Names of the tables' kinds of products, by the element types of weights. FP8 checkpoints have
# scales by blocks.
_GEMM_TYPES = {
    "bf16": "bf16",
    "fp16": "bf16",
    "fp8": "fp8_block",
    "nvfp4": "nvfp4",
    "mxfp4": "nvfp4",
    "int8": "int8_wo",
    "int4": "int4_wo",
    "int4_g64": "int4_wo",
    "int4_g32": "int4_wo",
}


def gemm_kind(element_type: str) -> str | None:
    """The tables' name of products with weights of a type; None: of none that was measured."""
    return _GEMM_TYPES.get(element_type)


def expert_kind(hardware: Hardware, weight_type: str) -> str | None:
    """The tables' name of a type of experts.

    MXFP4 meets FP8 rows where the GPU has FP4 tensor cores, else bf16.

    None where the roofline prices them.
    """
    if not find_engine(hardware.engine).measured_moe:
        return None
    if weight_type == "mxfp4":
        return "mxfp4" if "fp4" in hardware.peak_flop_per_s else "mxfp4_bf16"
    kind = _GEMM_TYPES.get(weight_type)
    return kind if kind in grouped_parameters.TYPES else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedCosts:
    """Every kernel by its family's parameters for this GPU and engine, or its nearest relative's."""

    hardware: Hardware

    @property
    def engine(self) -> str:
        """Whose measured kernels these are."""
        return find_engine(self.hardware.engine).kernels

    def gemm_seconds(
        self, rows_G: npt.ArrayLike, *, inner: int, outer: int, element_type: str, quantised: bool = False
    ) -> Float:
        """As of `KernelCosts`."""
        kind = gemm_kind(element_type)
        if kind is None:
            return self._roofline.gemm_seconds(rows_G, inner=inner, outer=outer, element_type=element_type)
        rows_G = np.asarray(rows_G, np.float64)
        told = (rows_G.shape, rows_G.tobytes())
        return _gemm_seconds(self, kind, inner, outer, quantised, *told).copy()

    def gemm_parameters(self, kind: str, *, quantised: bool) -> gemm.GemmParameters:
        """The engine's; where rows come quantised without what the measured kernel does for it: launched as in bf16."""
        parameters = gemm.find_parameters(self.hardware, engine=self.engine, element_type=kind).parameters
        if not quantised or kind == "bf16":
            return parameters
        plain = gemm.find_parameters(self.hardware, engine=self.engine, element_type="bf16").parameters
        launch_s = min(parameters.launch_s, plain.launch_s)
        return replace(parameters, launch_s=launch_s, quantise_row_s=0.0, quantise_element_s=0.0, quantise_inner_s=0.0)

    def elementwise_seconds(self, rows_G: npt.ArrayLike, *, row_bytes: float, kernels: int = 1) -> Float:
        """As of `KernelCosts`."""
        return quantise.elementwise_seconds(self.hardware, rows_G, row_bytes=row_bytes, kernels=kernels)

    def expert_seconds(
        self,
        block: ExpertBlock,
        load_GP: npt.ArrayLike,
        *,
        phase: str,
        sms: int | None = None,
        seen_G: npt.ArrayLike | None = None,
    ) -> Float:
        """As of `KernelCosts`."""
        kind = expert_kind(self.hardware, block.weight_type)
        if kind is None:
            return self._roofline.expert_seconds(block, load_GP, phase=phase, sms=sms)
        whole = np.shape(load_GP)[-1] == block.experts
        return grouped.fastest_seconds(
            self._expert_kernels(kind, whole=whole),
            self.hardware,
            block,
            load_GP,
            element_type=kind,
            seen_G=seen_G,
            sms=sms,
        )

    def _expert_kernels(self, kind: str, *, whole: bool = False) -> list[grouped_parameters.GroupedParameters]:
        found = grouped_parameters.find_parameters(self.hardware, engine=self.engine, element_type=kind, whole=whole)
        return [entry.parameters for entry in found]

    def expert_floor_seconds(
        self, block: ExpertBlock, rows: npt.ArrayLike, hits: npt.ArrayLike, *, phase: str, seen: npt.ArrayLike = 0.0
    ) -> Float:
        """As of `KernelCosts`."""
        kind = expert_kind(self.hardware, block.weight_type)
        if kind is None:
            return self._roofline.expert_floor_seconds(block, rows, hits, phase=phase, seen=seen)
        # With few enough slots a plan may have all experts on a rank: a floor is one of all
        # kernels.
        kernels = [*self._expert_kernels(kind), *self._expert_kernels(kind, whole=True)]
        return grouped.grouped_floor_seconds(kernels, self.hardware, block, rows, hits, element_type=kind, seen=seen)

    def partition_floor_seconds(
        self, block: ExpertBlock, load_E: npt.NDArray[np.int64], *, ranks: int, slots: int, phase: str
    ) -> tuple[float, float]:
        """As of `KernelCosts`."""
        kind = expert_kind(self.hardware, block.weight_type)
        if kind is None:
            return self._roofline.partition_floor_seconds(block, load_E, ranks=ranks, slots=slots, phase=phase)
        kernels = self._expert_kernels(kind, whole=slots == block.experts)
        return grouped.partition_floor_seconds(
            kernels, self.hardware, block, load_E, ranks=ranks, slots=slots, element_type=kind
        )

    def core_seconds(
        self, core: AttentionCore, *, phase: str, tokens_G: npt.ArrayLike, keys_G: npt.ArrayLike, queries: float = 1.0
    ) -> Float:
        """As of `KernelCosts`: of latent attention what the kernel takes inside a measured module of these types."""
        seconds_G = attention.core_seconds(
            core, self.hardware, engine=self.engine, phase=phase, tokens_G=tokens_G, keys_G=keys_G, queries=queries
        )
        if not core.module_type:
            return seconds_G
        module = self._module(core, core.module_type, phase)
        return seconds_G if module.other_types else seconds_G * module.parameters.core_part

    def _module(self, core: AttentionCore, element_type: str, phase: str) -> Entry[mla_module.MlaModuleParameters]:
        """The measured module of latent attention that is likest."""
        kind = gemm_kind(element_type) or "bf16"
        cache_type = "fp8" if core.kv_type == "fp8" else "bf16"
        return mla_module.find_parameters(
            self.hardware, engine=self.engine, phase=phase, gemm_type=kind, cache_type=cache_type
        )

    def projection_seconds(self, products: AttentionProducts, tokens_G: npt.ArrayLike, *, phase: str) -> Float:
        """As of `KernelCosts`: of latent attention as its measured modules have them, else the products one by one."""
        core, expand = products.core, products.expand
        absorbed = expand is not None and core.absorbed(phase)
        total = np.zeros(np.shape(tokens_G))
        for inner, outer in products.matrices:
            if not absorbed or (inner, outer) != expand:
                total = total + self.gemm_seconds(
                    tokens_G, inner=inner, outer=outer, element_type=products.element_type
                )
        if expand is None:
            kernels = find_engine(self.hardware.engine).attention_kernels
            return total + self.elementwise_seconds(tokens_G, row_bytes=products.moved_bytes, kernels=kernels)
        if absorbed:
            total = total + self._absorbed_seconds(core, tokens_G)
        module = self._module(core, products.element_type, phase).parameters
        beside = mla_module.beside_seconds(module, self.hardware, tokens_G, heads=core.heads)
        return module.gemm_part * total + beside

    def _absorbed_seconds(self, core: AttentionCore, tokens_G: npt.ArrayLike) -> Float:
        """The two batched products of decode: queries into latent vectors, and outputs out of them."""
        batched = mla_bmm.find_parameters(self.hardware, engine=self.engine, element_type="bf16").parameters
        tiles = gemm.find_parameters(self.hardware, engine=self.engine, element_type="bf16").parameters
        total = np.zeros(np.shape(tokens_G))
        for inner, outer in ((core.head_dim - core.rope_dim, core.kv_rank), (core.kv_rank, core.value_dim)):
            total = total + mla_bmm.mla_bmm_seconds(
                batched, tiles, self.hardware, tokens_G, core.heads, inner=inner, outer=outer
            )
        return total

    def state_seconds(
        self, state: RecurrentState, *, phase: str, tokens_G: npt.ArrayLike, queries: float = 1.0
    ) -> Float:
        """As of `KernelCosts`; prefill takes a rank's tokens for one sequence."""
        tokens = np.asarray(tokens_G, np.float64)
        batch, length = (tokens / queries, np.minimum(queries, tokens)) if phase == "decode" else (tokens > 0, tokens)
        conv, recurrence = (
            linear_attention.find_parameters(self.hardware, engine=self.engine, kind=f"{name} {phase}").parameters
            for name in ("conv", "state")
        )
        return linear_attention.conv_seconds(
            conv, self.hardware, batch, length, channels=state.channels
        ) + linear_attention.state_seconds(
            recurrence,
            self.hardware,
            batch,
            length,
            phase=phase,
            heads=state.heads,
            key_dim=state.key_dim,
            value_dim=state.value_dim,
        )

    @property
    def _roofline(self) -> Roofline:
        return Roofline(hardware=self.hardware)


@lru_cache(maxsize=256)
def _gemm_seconds(
    costs: FittedCosts,
    kind: str,
    inner: int,
    outer: int,
    quantised: bool,
    shape_of_G: tuple[int, ...],
    rows_of_G: bytes,
) -> Float:
    """As of `FittedCosts.gemm_seconds`; the layers of a step mostly ask for the same."""
    rows_G = np.frombuffer(rows_of_G).reshape(shape_of_G)
    parameters = costs.gemm_parameters(kind, quantised=quantised)
    # Most ranks have the same number of rows, or one of a few.
    rows_U, place_G = np.unique(rows_G, return_inverse=True)
    seconds_U = gemm.gemm_seconds(parameters, costs.hardware, rows_U, outer, inner, element_type=kind)
    return np.asarray(seconds_U[place_G].reshape(rows_G.shape))
