"""Iterations as they were, one by one, for a picture: as many as can be drawn, from the beginning of a run.

Axes: G DP rank, W iteration, N number of a rank (`cost.step_load`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Logged:
    """Iterations in a row of one instance, alike but for the keys of their first.

    Parameters
    ----------
    instance
        Whose.
    start_s, ends_W
        When the first begins, and when each ends.
    numbers_NG
        What each rank has to do in the first.
    running, waiting
        Requests of the instance.
    """

    instance: int
    start_s: float
    ends_W: Float
    numbers_NG: Int
    running: int
    waiting: int


class IterationLog:
    """Keeps iterations until so many spans of ranks are full; what comes later is left out.

    Parameters
    ----------
    most
        Spans, one for each rank and iteration.
    """

    def __init__(self, most: int) -> None:
        self._left = most
        self.kept: list[Logged] = []
        self.left_out = 0

    def add(self, logged: Logged) -> None:
        """Keep iterations, or count them where there is no room."""
        self._left -= logged.numbers_NG.shape[1] * len(logged.ends_W)
        if self._left >= 0:
            self.kept.append(logged)
        else:
            self.left_out += len(logged.ends_W)
