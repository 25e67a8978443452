"""How far off each family of kernels is on rows that nobody fitted, for one GPU, engine and model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moecast.sim.attention_shape import AttentionShape
from moecast.sim.cost import attention, gemm, grouped_parameters, mla_module
from moecast.sim.cost.fitted_costs import FittedCosts, expert_kind, gemm_kind
from moecast.sim.cost.shapes import AttentionCore
from moecast.sim.element_types import cache_bytes

if TYPE_CHECKING:
    from moecast.sim.cost.entries import Entry
    from moecast.sim.model import ModelShape
    from moecast.topology import Hardware

EXPERTS, ATTENTION, PRODUCTS = "experts", "attention", "dense products"


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyError:
    """The size of a family's relative errors on rows that set nothing.

    Parameters
    ----------
    family
        One of `EXPERTS`, `ATTENTION`, `PRODUCTS`.
    median, p90
        Half of the rows, and nine of ten, are off by less.
    rows
        How many there were, those that were fitted among them (2 % at the most).
    whose
        GPU, engine, version and kind of the kernel.
    """

    family: str
    median: float
    p90: float
    rows: int
    whose: str

    @property
    def p80(self) -> float:
        """Four of five rows are off by less: between median and p90, as of errors with an exponential tail."""
        return self.median + (self.p90 - self.median) * math.log(0.5 / 0.2) / math.log(0.5 / 0.1)


def family_errors(hardware: Hardware, model: ModelShape) -> tuple[FamilyError, ...]:
    """Errors of the families that make up a decode step, the worse of several kernels.

    Those without rows are left out.

    Parameters
    ----------
    hardware
        Priced by `fitted` kernels; of other models of kernels nothing is known here.
    """
    if hardware.kernels != "fitted":
        return ()
    costs, kind = FittedCosts(hardware=hardware), gemm_kind(model.dense_type) or "bf16"
    found = {
        EXPERTS: _experts(costs, model),
        ATTENTION: [_attention(costs, model)],
        PRODUCTS: [gemm.find_parameters(hardware, engine=costs.engine, element_type=kind)],
    }
    return tuple(
        _told(family, max(entries, key=lambda entry: entry.p90)) for family, entries in found.items() if entries
    )


def _told(family: str, entry: Entry[Any]) -> FamilyError:
    whose = f"{entry.kind} of {entry.engine} {entry.version} on {entry.gpu}"
    return FamilyError(family=family, median=entry.median, p90=entry.p90, rows=entry.rows, whose=whose)


def _experts(costs: FittedCosts, model: ModelShape) -> list[Entry[Any]]:
    kind = expert_kind(costs.hardware, model.weight_type)
    if kind is None:
        return []
    return list(grouped_parameters.find_parameters(costs.hardware, engine=costs.engine, element_type=kind))


def _attention(costs: FittedCosts, model: ModelShape) -> Entry[Any]:
    """The decode kernel, of latent attention the module."""
    shapes = (shape for shape in (model.attention, *model.more_attention) if isinstance(shape, AttentionShape))
    core = AttentionCore.of(model, next(shapes))
    cache_type = "fp8" if cache_bytes(core.kv_type, 1000) <= 1100 else "bf16"
    if core.latent:
        return mla_module.find_parameters(
            costs.hardware,
            engine=costs.engine,
            phase="decode",
            gemm_type=gemm_kind(core.module_type) or "bf16",
            cache_type=cache_type,
        )
    return attention.find_parameters(
        costs.hardware,
        engine=costs.engine,
        phase="decode",
        cache_type=cache_type,
        heads=core.heads,
        kv_heads=core.kv_heads,
        head_dim=core.head_dim,
    )
