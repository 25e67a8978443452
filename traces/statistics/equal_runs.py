"""Runs of equal rows: what a warm-up pass, a profiling run or padding leaves in a trace, whatever their share of it.

Axes: T token, L MoE layer, K choice, R run (rows that follow each other in the trace and make the
same choices).
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import numpy.typing as npt

from moecast.traces.statistics._rows import hash_runs
from moecast.traces.trace import RoutingTrace

_Run = tuple[int, int, int]  # first row, rows, hash
Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

LEAST_LEADING = 4
"""Rows of a run at the start of a trace that may be a warm-up's."""
LEAST_ROWS = 16
"""Rows of a run anywhere else that may be dummies: a text that repeats a word makes shorter ones at single layers."""

_CHANCE = 1e-6  # that any run so long comes about in the whole trace
_LEADING_CHANCE = 1e-4  # that the trace begins with one so long
_Z = 3.1  # standard deviations above which one in a thousand counts lies
_BUCKETS = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DummyRuns:
    """Runs of equal rows that routing as varied as the rest of the trace would not make.

    Parameters
    ----------
    start_R, length_R
        First row and number of rows of each, in order.
    leading
        Rows at the start of the trace that lie in such runs.
    """

    start_R: Ints
    length_R: Ints
    leading: int

    @property
    def rows(self) -> int:
        """Rows in all runs."""
        return int(self.length_R.sum())

    def mask_T(self, first: int, tokens: int) -> npt.NDArray[np.bool_]:
        """Which of the rows `first` to `first + tokens` lie in a run."""
        end_R = self.start_R + self.length_R
        row_T = np.arange(first, first + tokens)
        run_T = np.searchsorted(self.start_R, row_T, side="right") - 1
        return np.asarray((run_T >= 0) & (row_T < np.append(end_R, 0)[run_T]))


class RunFinder:
    """Looks for runs of equal rows in a trace that comes in batches.

    Memory does not grow with the rows between runs.

    A run of n equal rows is not chance when T · pⁿ⁻¹ is below one in a million, p being at most the
    share of such rows among those outside all runs found so: the probability that the next row is
    the same again, were rows drawn independently. Rows are counted by a hash of 16 bits, which can
    only raise p. So nothing is found where few different rows exist (few experts, one choice, a
    router that has collapsed), unless the run is longer than those make; and what is found does not
    depend on the dummies' share of the trace, since no run speaks for itself.
    """

    def __init__(self) -> None:
        self._count_B = np.zeros(_BUCKETS, np.int64)
        self._tokens = 0
        # first row and hash of the run that the last row belongs to
        self._open: tuple[int, int] | None = None
        self._runs: list[_Run] = []
        # so far the trace is nothing but runs of at least `LEAST_LEADING` rows
        self._chained = True

    def add(self, trace: RoutingTrace) -> None:
        """Look at the next rows."""
        tokens = trace.n_tokens
        if not tokens:
            return
        hash_T = row_hashes_T(trace.experts_TLK)
        self._count_B += np.bincount(_bucket(hash_T), minlength=_BUCKETS)
        starts = np.flatnonzero(hash_T[1:] != hash_T[:-1]) + 1
        if self._open is None or self._open[1] != int(hash_T[0]):
            starts = np.concatenate([[0], starts])
        if len(starts):
            begun_R, hash_R = starts + self._tokens, hash_T[starts]
            if self._open is not None:
                begun_R = np.concatenate([[self._open[0]], begun_R])
                hash_R = np.concatenate([np.array([self._open[1]], np.uint64), hash_R])
            self._close(begun_R[:-1], hash_R[:-1], np.diff(begun_R))
            self._open = int(begun_R[-1]), int(hash_R[-1])
        self._tokens += tokens

    def found(self) -> DummyRuns:
        """Return the dummy runs of all rows so far."""
        runs, chained = list(self._runs), self._chained
        if self._open is not None:
            runs += self._kept(*self._open, self._tokens - self._open[0], chained=chained)
        judged = _Judged(self._count_B, self._tokens)
        # The longest first: real rows look rare while dummies are counted among the others.
        for run in sorted(runs, key=lambda run: -run[1]):
            if run[1] >= LEAST_ROWS and self._tokens * judged.chance(run) < _CHANCE:
                judged.take(run)
        leading = 0
        for run in runs:
            if run[0] != leading or not (run in judged.taken or judged.chance(run) < _LEADING_CHANCE):
                break
            judged.take(run)
            leading += run[1]
        start_R, length_R, _ = np.array(sorted(judged.taken), object).reshape(-1, 3).T
        return DummyRuns(start_R=start_R.astype(np.int64), length_R=length_R.astype(np.int64), leading=leading)

    def _close(self, start_R: Ints, hash_R: Hashes, length_R: Ints) -> None:
        """Keep the runs that are long enough."""
        position = 0
        while self._chained and position < len(start_R):
            run = int(start_R[position]), int(hash_R[position]), int(length_R[position])
            self._runs += self._kept(*run, chained=True)
            self._chained = run[2] >= LEAST_LEADING
            position += 1
        for index in np.flatnonzero(length_R[position:] >= LEAST_ROWS) + position:
            self._runs.append((int(start_R[index]), int(length_R[index]), int(hash_R[index])))

    def _kept(self, start: int, value: int, length: int, *, chained: bool) -> list[_Run]:
        return [(start, length, value)] if length >= (LEAST_LEADING if chained else LEAST_ROWS) else []


def row_hashes_T(experts_TLK: npt.NDArray[np.uint16]) -> Hashes:
    """A hash of each row's choices at all layers: equal rows have equal ones."""
    hash_T = np.empty(len(experts_TLK), np.uint64)
    hash_runs(np.ascontiguousarray(experts_TLK), np.arange(len(experts_TLK) + 1), 1, hash_T)
    return hash_T


def _bucket(hash_T: Hashes) -> Ints:
    """The upper bits of the hashes, mixed: those of short rows differ in few bits."""
    mixed_T = (hash_T ^ (hash_T >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed_T >> np.uint64(48)).astype(np.int64)


class _Judged:
    """Which runs were taken for dummies, and how likely another is, given the rows outside those."""

    def __init__(self, count_B: Ints, tokens: int) -> None:
        self._count_B, self._others = count_B, tokens
        self._taken_rows: Counter[int] = Counter()
        self.taken: set[_Run] = set()

    def take(self, run: _Run) -> None:
        if run not in self.taken:
            self.taken.add(run)
            self._others -= run[1]
            self._taken_rows[run[2]] += run[1]

    def chance(self, run: _Run) -> float:
        """That the rows after a run's first are like it: a power of at most the share of such rows among the others.

        The share is Wilson's upper limit (1927, one-sided, 99.9 %).
        """
        _, length, value = run
        others = self._others - length
        if not others:
            return 1.0
        same = max(int(self._count_B[_bucket(np.array([value], np.uint64))[0]]) - self._taken_rows[value] - length, 0)
        middle = same + _Z**2 / 2
        spread = _Z * (same * (others - same) / others + _Z**2 / 4) ** 0.5
        return float(min((middle + spread) / (others + _Z**2), 1.0) ** (length - 1))
