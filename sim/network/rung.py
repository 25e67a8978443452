"""Which rungs there are, and which one a question takes.

A rung is a small class that satisfies `Rung` and stands in `RUNGS`, cheapest first.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from moecast.errors import MoecastError
from moecast.sim.network.bound import Bound
from moecast.sim.network.fluid import Fluid
from moecast.sim.program import StepProgram, StepTimes

FLUID_RANKS = 64
"""Beyond so many ranks the exact fluid rung takes minutes for a step: `usual_rung` is `bound` there."""


class Rung(Protocol):
    """One way to find out when each rank enters and leaves each task; its docstring says what it models."""

    @property
    def name(self) -> str:
        """As `find_rung` reads it."""
        ...

    @property
    def times_every_step(self) -> bool:
        """Whether it is cheap enough for all steps of a workload, and not for a few only."""
        ...

    @property
    def is_lower_bound(self) -> bool:
        """Whether its times are lower bounds only: they flatter most what they know least of."""
        ...

    def supports(self, program: StepProgram, /) -> str | None:
        """Say in one line why it cannot time a program; None where it can."""
        ...

    def run(self, program: StepProgram) -> StepTimes:
        """Find the times of every rank at every task.

        Raises
        ------
        ValueError
            The program's arrays do not fit together.
        MoecastError
            It does not support the program.
        """
        ...


RUNGS: tuple[Rung, ...] = (Bound(), Fluid())


def find_rung(network: str | Rung) -> Rung:
    """Find a network rung by name, such as ``bound``, ``fluid`` or, with a tolerance, ``fluid:0.3%``.

    Raises
    ------
    MoecastError
        There is none, or the tolerance is no percentage from 0 to 10.
    """
    if not isinstance(network, str):
        return network
    kind, colon, tolerance = network.partition(":")
    if kind == "fluid" and colon:
        try:
            return Fluid(tolerance=float(tolerance.removesuffix("%")) / 100 if tolerance.endswith("%") else np.nan)
        except ValueError as error:
            raise MoecastError(
                "a tolerance is from 0% to 10%, as in fluid:0.3%", field="network", value=network
            ) from error
    for rung in RUNGS:
        if rung.name == network:
            return rung
    raise MoecastError(f"one of {', '.join(rung.name for rung in RUNGS)}", field="network", value=network)


def usual_rung(ranks: int) -> Rung:
    """Take the rung that answers soon for so many ranks."""
    return find_rung("fluid" if ranks <= FLUID_RANKS else "bound")
