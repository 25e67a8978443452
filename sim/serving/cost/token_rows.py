"""Which rows of a trace stand for a request's tokens: a run of a sequence of its topic, from a place of its own on.

Axes: T token.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.parts import Part
from moecast.traces import PHASES, RoutingTrace

Int = npt.NDArray[np.int64]

_PRIME = 2_654_435_761
"""Spreads request numbers over the rows (Knuth's multiplicative hash)."""


class TokenRows:
    """Rows of a trace by phase and topic, in the order of their sequences.

    A trace that holds one phase stands for both: a result says so.

    Raises
    ------
    MoecastError
        The trace is empty.
    """

    def __init__(self, trace: RoutingTrace, *, seed: int = 0) -> None:
        if not trace.n_tokens:
            raise MoecastError("the trace holds no token", field="trace")
        self._seed = seed
        self._rows = {part: _rows_of(trace, part) for part in Part}
        self._topic_at: dict[tuple[Part, int], tuple[int, int]] = {}
        for part, rows_T in self._rows.items():
            topic_T = trace.topic_T[rows_T]
            for topic in np.unique(topic_T).tolist():
                first, end = np.searchsorted(topic_T, [topic, topic + 1])
                self._topic_at[part, topic] = int(first), int(end)

    def of(self, part: Part, request: int, topic: int, first: int, count: int) -> Int:
        """Rows of `count` tokens of a request from its `first` one on."""
        rows_T = self._rows[part]
        low, end = self._topic_at.get((part, topic), (0, len(rows_T)))
        offset = (request * _PRIME + self._seed * 40_503) % (end - low)
        return rows_T[low + (offset + first + np.arange(count)) % (end - low)]


def _rows_of(trace: RoutingTrace, part: Part) -> Int:
    rows_T = np.flatnonzero(trace.phase_T == PHASES.index(part))
    rows_T = rows_T if len(rows_T) else np.arange(trace.n_tokens)
    return rows_T[np.lexsort((trace.position_T[rows_T], trace.sequence_T[rows_T], trace.topic_T[rows_T]))]
