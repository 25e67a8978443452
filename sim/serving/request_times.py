"""When each request came, was begun, gave its first token and ended: what pictures of single requests are made of.

Axes: Q request, in the order of ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.sim.serving.records import Records

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestTimes:
    """Times of each request, in seconds from the start of the run.

    Parameters
    ----------
    arrival_Q, started_Q
        When it reached the engine, and when the first iteration with it began.
    prefilled_Q, first_Q
        When its prompt was done, and when it was given its first token: later only where its keys
        had to move.
    end_Q
        When it had its last token.
    preempted_Q
        How often it lost its blocks.
    """

    arrival_Q: Float
    started_Q: Float
    prefilled_Q: Float
    first_Q: Float
    end_Q: Float
    preempted_Q: Int

    @classmethod
    def of(cls, records: Records, prompts: Records | None = None) -> RequestTimes:
        """From what a run wrote down, of the pool that answers and of another that computed prompts, if any."""
        first = records if prompts is None else prompts
        return cls(
            arrival_Q=records.arrival_Q,
            started_Q=first.started_Q,
            prefilled_Q=first.first_Q,
            first_Q=records.first_Q,
            end_Q=records.end_Q,
            preempted_Q=records.preempted_Q,
        )
