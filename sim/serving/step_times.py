"""How long iterations take by how many requests are in them: a few numbers for each class of batch sizes.

Axes: P kind of iteration (without prompts, with them), C class of batch sizes, four to a doubling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

PER_OCTAVE, CLASSES = 4, 96
KINDS = ("decode", "with prompts")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Iterations of one kind whose batches are about as large.

    Parameters
    ----------
    kind
        `decode` or `with prompts`.
    batch
        Requests in them, over the ranks of an instance, in the mean.
    iterations
        How many.
    mean_s, least_s, most_s
        How long they took.
    """

    kind: str
    batch: float
    iterations: int
    mean_s: float
    least_s: float
    most_s: float


class StepsByBatch:
    """Counts iterations by their batch."""

    def __init__(self) -> None:
        shape = len(KINDS), CLASSES
        self._counts_PC, self._batch_PC = np.zeros(shape, np.int64), np.zeros(shape)
        self._sum_PC, self._least_PC, self._most_PC = np.zeros(shape), np.full(shape, np.inf), np.zeros(shape)

    def add(self, *, prompts: bool, batch: int, durations_W: Float, took_s: float) -> None:
        """Take in iterations of one batch [W], `took_s` in all."""
        at = int(prompts), min(CLASSES - 1, round(PER_OCTAVE * math.log2(max(batch, 1))))
        count = len(durations_W)
        self._counts_PC[at] += count
        self._batch_PC[at] += count * batch
        self._sum_PC[at] += took_s
        least, most = (took_s, took_s) if count == 1 else (durations_W.min(), durations_W.max())
        self._least_PC[at] = min(self._least_PC[at], least)
        self._most_PC[at] = max(self._most_PC[at], most)

    def found(self) -> tuple[StepTimes, ...]:
        """The classes that have any, by kind and size."""
        return tuple(
            StepTimes(
                kind=KINDS[kind],
                batch=float(self._batch_PC[kind, at] / count),
                iterations=int(count),
                mean_s=float(self._sum_PC[kind, at] / count),
                least_s=float(self._least_PC[kind, at]),
                most_s=float(self._most_PC[kind, at]),
            )
            for (kind, at), count in np.ndenumerate(self._counts_PC)
            if count
        )
