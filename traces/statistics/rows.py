"""What only a look at every row can tell: runs of equal rows, and whether its numbering rises.

Axes: T token.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from moecast.traces.meta import TraceMeta
from moecast.traces.statistics._rows import count_in_order
from moecast.traces.statistics.equal_runs import DummyRuns, RunFinder
from moecast.traces.trace import RoutingTrace


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RowFacts:
    """Facts of all rows.

    Parameters
    ----------
    tokens
        T.
    dummies
        Runs of equal rows that the rest of the trace would not make.
    in_order
        Rows that choose experts 0, 1, … K-1 at every layer; None where K = E or K = 1, when many
        may.
    step_falls
        Rows whose step is below the row's before; None without steps.
    same_token_id
        The most rows in unbroken order with one token id; None without ids.
    """

    tokens: int
    dummies: DummyRuns
    in_order: int | None
    step_falls: int | None
    same_token_id: int | None


class RowScanner:
    """Looks at batch after batch."""

    def __init__(self, meta: TraceMeta) -> None:
        self._meta = meta
        self._usual = meta.choices in (1, meta.experts)
        self._tokens = self._in_order = self._step_falls = 0
        self._runs = RunFinder()
        self._last_step: int | None = None
        self._id, self._id_run, self._longest_id_run = None, 0, 0  # type: int | None, int, int
        self._has_ids = False

    def add(self, trace: RoutingTrace) -> None:
        """Look at the tokens of a batch.

        Raises
        ------
        ValueError
            The batch's L, E or K is not the scanner's.
        """
        trace.check_shape(self._meta)
        if not trace.n_tokens:
            return
        self._runs.add(trace)
        if not self._usual:
            self._in_order += count_in_order(trace.experts_TLK)
        if trace.step_T is not None:
            step_T = trace.step_T.astype(np.int64)
            before = step_T[0] if self._last_step is None else self._last_step
            self._step_falls += int((np.diff(step_T, prepend=before) < 0).sum())
            self._last_step = int(step_T[-1])
        if trace.token_id_T is not None:
            self._has_ids = True
            self._add_ids(trace.token_id_T)
        self._tokens += trace.n_tokens

    def facts(self) -> RowFacts:
        """Return the facts so far."""
        return RowFacts(
            tokens=self._tokens,
            dummies=self._runs.found(),
            in_order=None if self._usual else self._in_order,
            step_falls=None if self._last_step is None else self._step_falls,
            same_token_id=self._longest_id_run if self._has_ids else None,
        )

    def _add_ids(self, token_id_T: npt.NDArray[np.int32]) -> None:
        breaks = np.flatnonzero(np.diff(token_id_T)) + 1
        lengths = np.diff(np.concatenate([[0], breaks, [len(token_id_T)]]))
        if self._id == int(token_id_T[0]):
            lengths[0] += self._id_run
        self._longest_id_run = max(self._longest_id_run, int(lengths.max()))
        self._id, self._id_run = int(token_id_T[-1]), int(lengths[-1])
