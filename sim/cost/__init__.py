"""What kernels cost: one file per family, behind one interface.

Parameters are fitted on measured rows (`moecast.validate.fitting`) and kept as data in `fitted/`; `tables/` reads such
rows. docs/cost/ says for each family what it stands on and how far off it is.
"""

from __future__ import annotations

from moecast.sim.cost.kernel_costs import KernelCosts
from moecast.sim.cost.roofline_costs import Roofline
from moecast.sim.cost.shapes import AttentionCore, ExpertBlock
from moecast.topology import Hardware

__all__ = ["AttentionCore", "ExpertBlock", "KernelCosts", "Roofline", "costs_of"]


def costs_of(hardware: Hardware) -> KernelCosts:
    """The model of kernels that a hardware table names."""
    return Roofline(hardware=hardware)
