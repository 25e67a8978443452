"""What kernels cost: one file per family, behind one interface.

Parameters are fitted on measured rows (`moecast.validate.fitting`) and kept as data in `fitted/`;
`tables/` reads such rows. docs/cost/ says for each family what it stands on and how far off it is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from moecast.errors import MoecastError
from moecast.sim.cost.fitted_costs import FittedCosts
from moecast.sim.cost.gpus import gpu_key
from moecast.sim.cost.kernel_costs import KernelCosts
from moecast.sim.cost.roofline_costs import Roofline
from moecast.sim.cost.shapes import AttentionCore, AttentionProducts, ExpertBlock, RecurrentState
from moecast.sim.cost.table_costs import TableCosts
from moecast.sim.cost.tables.installed import open_tables
from moecast.sim.engines import find_engine
from moecast.topology.hardware import TABLES

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
    "TableCosts",
    "costs_of",
    "kernels_on",
]


@lru_cache(maxsize=64)
def costs_of(hardware: Hardware) -> KernelCosts:
    """The model of kernels that a hardware table names.

    Raises
    ------
    MoecastError
        Its engine is not known, or its tables cannot be read or hold nothing of its GPU.
    """
    engine = find_engine(hardware.engine)
    if hardware.kernels == "roofline":
        return Roofline(hardware=hardware)
    if not hardware.kernels.startswith(TABLES):
        return FittedCosts(hardware=hardware)
    tables = open_tables(hardware.kernels.removeprefix(TABLES), gpu_key(hardware), engine.name)
    return TableCosts(hardware=replace(hardware, engine=tables.engine), tables=tables)


def kernels_on(cluster: Cluster, *, kernels: str | None = None, engine: str | None = None) -> Cluster:
    """The same cluster with other kernels; None: as it has them.

    Raises
    ------
    MoecastError
        There is no such model of kernels, or no such engine, or tables cannot be read.
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
            rule = "fitted, roofline or tables:DIR"
            raise MoecastError(rule, field="kernels", value=kernels) from error
        costs_of(hardware)  # whether tables can be read is said before anything is forecast
    return cluster.with_hardware(hardware)
