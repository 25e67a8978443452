"""Forecasts beside what a benchmark measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moecast.sim import Prediction, time_collective
from moecast.sim.accuracy import collective_grounds
from moecast.sim.network import Rung
from moecast.topology import Cluster
from moecast.validate.compare import relative_error
from moecast.validate.results.nccl_tests import NcclResult
from moecast.validate.results.serving import ServingResult

FULL_WITHIN = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A measured time and its forecast.

    Parameters
    ----------
    low_s, high_s
        80 % interval of the forecast; None where nothing measured stands behind it.
    """

    what: str
    measured_s: float
    predicted_s: float
    low_s: float | None
    high_s: float | None
    note: str = ""

    @property
    def error(self) -> float:
        """Relative error of the forecast."""
        return relative_error(self.predicted_s, self.measured_s)

    @property
    def inside(self) -> bool | None:
        """Whether the measurement lies in the interval."""
        if self.low_s is None or self.high_s is None:
            return None
        return self.low_s <= self.measured_s <= self.high_s

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = ("what", "measured_s", "predicted_s", "error", "low_s", "high_s", "inside", "note")
        return {name: getattr(self, name) for name in names}


def check_serving(
    result: ServingResult, *, batch: float, answer: Callable[[int], Prediction]
) -> tuple[Checked, Prediction]:
    """Lay the time per output token beside a decode step.

    `batch` is of each rank that attends by itself.

    Between whole batches in proportion. Prefill between decode steps is not forecast.
    """
    low = max(1, math.floor(batch))
    first = answer(low)
    time_s = _step_s(first)
    part = batch - low
    if batch > 1 and part >= FULL_WITHIN:
        time_s = (1 - part) * time_s + part * _step_s(answer(low + 1))
    factors = (None, None) if first.interval_s is None else tuple(end / _step_s(first) for end in first.interval_s)
    low_s, high_s = (None if factor is None else factor * time_s for factor in factors)
    name = f"{result.name}: " if result.name else ""
    note = f"a decode step of {batch:.4g} sequences a rank at {result.context:,} keys"
    checked = Checked(
        what=f"{name}time per output token",
        measured_s=result.tpot_s,
        predicted_s=time_s,
        low_s=low_s,
        high_s=high_s,
        note=note,
    )
    return checked, first


def _step_s(prediction: Prediction) -> float:
    return prediction.compared_s


def check_collectives(result: NcclResult, cluster: Cluster, *, rung: Rung, ranks: int | None = None) -> list[Checked]:
    """Lay the time of each size beside the forecast of `moecast collective`.

    Raises
    ------
    MoecastError
        The cluster has fewer GPUs than ranks took part, or the operation is not timed.
    """
    count = ranks or result.ranks or cluster.n_gpus
    sizes = [float(size) for size, _ in result.rows]
    timed = time_collective(cluster, result.operation, sizes, ranks=count, rung=rung)
    interval = collective_grounds(cluster, result.operation, ranks=count).interval
    found = []
    for (size, measured_s), row in zip(result.rows, timed, strict=True):
        low_s, high_s = (None, None) if interval is None else interval.of(row.time_s)
        found.append(
            Checked(
                what=f"{result.operation}, {size:,} bytes",
                measured_s=measured_s,
                predicted_s=row.time_s,
                low_s=low_s,
                high_s=high_s,
                note=row.carried_by,
            )
        )
    return found
