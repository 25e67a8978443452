"""What one engine iteration costs: simulated exactly, or by a surrogate that is built on the way."""

from __future__ import annotations

from moecast.sim.serving.cost.step_cost import StepCost
from moecast.sim.serving.cost.step_load import StepLoad

__all__ = ["StepCost", "StepLoad"]
