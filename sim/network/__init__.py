"""Network rungs: how long the bytes of a step take, from a lower bound to fair flows."""

from __future__ import annotations

from moecast.sim.network.bound import Bound
from moecast.sim.network.fluid import Fluid, OpenFluid, deliver
from moecast.sim.network.maxmin import max_min_rates
from moecast.sim.network.rung import RUNGS, Rung, find_rung, usual_rung

__all__ = ["RUNGS", "Bound", "Fluid", "OpenFluid", "Rung", "deliver", "find_rung", "max_min_rates", "usual_rung"]
