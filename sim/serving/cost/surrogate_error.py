"""How far off a surrogate was, on iterations of the run that it had not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moecast.sim.serving.cost.step_cost import StepCost
from moecast.sim.serving.cost.surrogate import SurrogateCost


@dataclass(frozen=True, slots=True, kw_only=True)
class SurrogateError:
    """How far off the surrogate was on iterations that it had not seen, which were simulated, too.

    Parameters
    ----------
    iterations
        How many were tried.
    median, worst, bias
        Relative errors: of their size the median and the largest, and the mean with its sign.
    simulated
        Steps that were simulated to build it.
    """

    iterations: int
    median: float
    worst: float
    bias: float
    simulated: int

    @property
    def shown(self) -> str:
        """In a line."""
        errors = f"median error {self.median:.2%}, at most {self.worst:.2%}, bias {self.bias:+.2%}"
        return f"{errors} on {self.iterations} iterations it had not seen; {self.simulated} steps simulated to build it"


def surrogate_error(cost: StepCost) -> SurrogateError | None:
    """How far off the surrogate was, where one was tried."""
    if not isinstance(cost, SurrogateCost) or not cost.tried.errors:
        return None
    sizes = np.abs(cost.tried.errors)
    return SurrogateError(
        iterations=len(sizes),
        median=float(np.median(sizes)),
        worst=float(sizes.max()),
        bias=float(np.mean(cost.tried.errors)),
        simulated=cost.simulated,
    )


def network_share(cost: StepCost) -> float | None:
    """The part of iterations' time in exchanges, where the cost knows it."""
    return cost.network_s / cost.total_s if isinstance(cost, SurrogateCost) and cost.total_s else None
