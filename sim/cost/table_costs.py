"""Kernels by a user's own measured tables where they cover them, and by fitted parameters elsewhere.

    seconds = fitted(what is asked) * measured(a benchmark's row like it) / fitted(that row)

What a table does not know, loads that are not even, chunks before a prompt, caches that are cold,
the model says. Measured times may fall where a kernel takes more work by another tile; so may
these. docs/cost/tables.md has the errors. Axes: G rank, P slot; arrays may have any axes in front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.fitted_costs import FittedCosts, expert_kind, gemm_kind
from moecast.sim.cost.grouped import grouped_seconds
from moecast.sim.cost.table_ratios import core_ratio, expert_kernels, gemm_ratio, least_expert_ratio
from moecast.sim.cost.tables.installed import InstalledTables

if TYPE_CHECKING:
    from moecast.sim.cost.shapes import AttentionCore, ExpertBlock
    from moecast.sim.cost.tables.ratio import MeasuredRatio

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCosts(FittedCosts):
    """`FittedCosts`, corrected by what a user's tables measured: dense products, attention, routed experts."""

    tables: InstalledTables

    def gemm_seconds(
        self, rows_G: npt.ArrayLike, *, inner: int, outer: int, element_type: str, quantised: bool = False
    ) -> Float:
        """As of `KernelCosts`."""
        shape = {"inner": inner, "outer": outer, "element_type": element_type}
        seconds_G = FittedCosts.gemm_seconds(self, rows_G, **shape, quantised=quantised)  # type: ignore[arg-type]
        ratio = self._gemm_ratio(inner, outer, element_type)
        if ratio is None:
            return seconds_G
        # Most ranks have the same number of rows, or one of a few.
        rows_U, place_G = np.unique(np.asarray(rows_G, np.float64), return_inverse=True)
        return seconds_G * ratio.at(rows_U, outer, inner)[place_G].reshape(seconds_G.shape)

    def core_seconds(
        self, core: AttentionCore, *, phase: str, tokens_G: npt.ArrayLike, keys_G: npt.ArrayLike, queries: float = 1.0
    ) -> Float:
        """As of `KernelCosts`."""
        seconds_G = FittedCosts.core_seconds(self, core, phase=phase, tokens_G=tokens_G, keys_G=keys_G, queries=queries)
        ratio = core_ratio(self.tables, core, phase)
        if ratio is None:
            return seconds_G
        tokens, keys = np.broadcast_arrays(np.asarray(tokens_G, np.float64), np.asarray(keys_G, np.float64))
        mean = np.divide(keys, tokens, out=np.ones(tokens.shape), where=tokens > 0)
        if phase == "decode":
            return seconds_G * ratio.at(tokens / queries, mean)
        length = np.clip(2 * mean - 1, 1, np.maximum(tokens, 1))
        return seconds_G * ratio.at(tokens / length, length)

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
        kind, load = expert_kind(self.hardware, block.weight_type), np.asarray(load_GP)
        if kind is None:
            return FittedCosts.expert_seconds(self, block, load, phase=phase, sms=sms, seen_G=seen_G)
        rows_G, each = load.sum(axis=-1), []
        for one in expert_kernels(self.tables, block, load.shape[-1]):
            seconds_G = grouped_seconds(
                one.parameters, self.hardware, block, load, element_type=kind, seen_G=seen_G, sms=sms
            )
            each.append(seconds_G if one.ratio is None else seconds_G * one.ratio.at(rows_G))
        return np.asarray(np.min(each, axis=0), np.float64)

    def expert_floor_seconds(
        self, block: ExpertBlock, rows: npt.ArrayLike, hits: npt.ArrayLike, *, phase: str, seen: npt.ArrayLike = 0.0
    ) -> Float:
        """As of `KernelCosts`: the model's floor of all kernels, by the least ratio of any; `seen` is not counted."""
        del seen
        floor = FittedCosts.expert_floor_seconds(self, block, rows, hits, phase=phase)
        covered = expert_kind(self.hardware, block.weight_type) is not None
        return floor * least_expert_ratio(self.tables, block) if covered else floor

    def partition_floor_seconds(
        self, block: ExpertBlock, load_E: npt.NDArray[np.int64], *, ranks: int, slots: int, phase: str
    ) -> tuple[float, float]:
        """As of `KernelCosts`: the model's floors, by the least ratio of any kernel."""
        floors = FittedCosts.partition_floor_seconds(self, block, load_E, ranks=ranks, slots=slots, phase=phase)
        covered = expert_kind(self.hardware, block.weight_type) is not None
        least = least_expert_ratio(self.tables, block) if covered else 1.0
        return least * floors[0], least * floors[1]

    def covers_gemm(self, *, inner: int, outer: int, element_type: str) -> bool:
        """Whether a product lies between measured ones."""
        return self._gemm_ratio(inner, outer, element_type) is not None

    def covers_core(self, core: AttentionCore, phase: str) -> bool:
        """Whether an attention core was measured."""
        return core_ratio(self.tables, core, phase) is not None

    def covers_experts(self, block: ExpertBlock, slots: int) -> bool:
        """Whether the engine's usual kernel of routed experts was measured on a rank with about so many slots."""
        known = expert_kind(self.hardware, block.weight_type) is not None
        return known and expert_kernels(self.tables, block, slots)[0].ratio is not None

    def _gemm_ratio(self, inner: int, outer: int, element_type: str) -> MeasuredRatio | None:
        kind = gemm_kind(element_type)
        ratio = None if kind is None else gemm_ratio(self.tables, kind)
        return ratio if ratio is not None and ratio.reaches(1, outer) and ratio.reaches(2, inner) else None
