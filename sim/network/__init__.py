"""Network rungs: how long the bytes of a step take, from a lower bound to fair flows.

A rung is a small class that satisfies `Rung` and stands in `RUNGS`, cheapest first.
"""

from __future__ import annotations

from typing import Protocol

from moecast.sim.network.bound import Bound
from moecast.sim.network.fluid import Fluid, OpenFluid, deliver
from moecast.sim.network.maxmin import max_min_rates
from moecast.sim.program import StepProgram, StepTimes


class Rung(Protocol):
    """One way to find out when each rank enters and leaves each stage; its docstring says what it models."""

    name: str

    def run(self, program: StepProgram) -> StepTimes:
        """Find the times of every rank at every stage.

        Raises
        ------
        ValueError
            The program's arrays do not fit together.
        """
        ...


RUNGS: tuple[Rung, ...] = (Bound(), Fluid())

__all__ = ["RUNGS", "Bound", "Fluid", "OpenFluid", "Rung", "deliver", "max_min_rates"]
