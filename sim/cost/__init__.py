"""What kernels cost: one file per family, behind one interface.

Parameters are fitted on measured rows (`moecast.validate.fitting`) and kept as data in `fitted/`; `tables/` reads such
rows. docs/cost/ says for each family what it stands on and how far off it is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from moecast.errors import MoecastError
from moecast.sim.cost.fitted_costs import FittedCosts
from moecast.sim.cost.kernel_costs import KernelCosts
from moecast.sim.cost.roofline_costs import Roofline
from moecast.sim.cost.shapes import AttentionCore, AttentionProducts, ExpertBlock, RecurrentState
from moecast.sim.engines import find_engine

if TYPE_CHECKING:
    from moecast.topology import Cluster, Hardware

__all__ = [
    "AttentionCore",
    "AttentionProducts",
    "ExpertBlock",
    "FittedCosts",
    "KernelCosts",
    "RecurrentState",
    "Roofline",
    "costs_of",
    "kernels_on",
]


@lru_cache(maxsize=64)
def costs_of(hardware: Hardware) -> KernelCosts:
    """The model of kernels that a hardware table names.

    Raises
    ------
    MoecastError
        Its engine is not known.
    """
    find_engine(hardware.engine)
    return Roofline(hardware=hardware) if hardware.kernels == "roofline" else FittedCosts(hardware=hardware)


def kernels_on(cluster: Cluster, *, kernels: str | None = None, engine: str | None = None) -> Cluster:
    """The same cluster with other kernels; None: as it has them.

    Raises
    ------
    MoecastError
        There is no such model of kernels, or no such engine.
    """
    if kernels is None and engine is None:
        return cluster
    hardware = cluster.hardware
    if engine is not None:
        hardware = replace(hardware, engine=find_engine(engine).name)
    if kernels is not None:
        try:
            hardware = replace(hardware, kernels=kernels)
        except ValueError as error:
            rule = "fitted or roofline"
            raise MoecastError(rule, field="kernels", value=kernels) from error
    return cluster.with_hardware(hardware)
