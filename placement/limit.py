"""How long a search may go on: by the clock, or by counted work."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from moecast.errors import MoecastError
from moecast.sim.workload import MOST_SEED

Progress = Callable[[str, float], None]
"""Called with what is being done, and the part of the limit that is used (0 to 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """When a solver stops with the best plan so far.

    Parameters
    ----------
    time_s
        Seconds on the clock. The plan is legal and the gap honest, but another run may find another
        plan.
    work
        Swaps judged (for the exact solver: units of deterministic solver time, a million to one).
        The same work limit gives the same plan. None for both: a solver's own default amount of
        work.

    Raises
    ------
    MoecastError
        A limit that is not positive.
    """

    time_s: float | None = None
    work: int | None = None

    def __post_init__(self) -> None:
        if self.time_s is not None and not 0 < self.time_s < float("inf"):
            raise MoecastError("must be longer than nothing", field="time_limit", value=self.time_s)
        if self.work is not None and self.work < 1:
            raise MoecastError("must be at least 1", field="work_limit", value=self.work)


def check_seed(seed: int) -> None:
    """Fail on a seed that a search cannot keep.

    Raises
    ------
    MoecastError
        Not a whole number of 0 to `MOST_SEED`.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MOST_SEED:
        raise MoecastError(f"must be a whole number of 0 to {MOST_SEED}", field="seed", value=seed)


class Budget:
    """What is left of a limit, from the moment it is made.

    Parameters
    ----------
    limit
        The limit.
    progress
        Told how far the search is.
    """

    def __init__(self, limit: Limit | None = None, progress: Progress | None = None) -> None:
        self.limit = Limit() if limit is None else limit
        self._progress = progress
        self._start = time.monotonic()
        self._told = 0.0
        self._kept_s = 0.0
        self.used = 0
        self.stopped = False
        """Whether somebody asked for the best so far, now."""

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def seconds_left(self) -> float:
        """Seconds until the time limit; endless without one, none once it is stopped."""
        if self.stopped:
            return 0.0
        return float("inf") if self.limit.time_s is None else self.limit.time_s - self._kept_s - self.seconds

    @property
    def over(self) -> bool:
        """Whether either limit is reached."""
        return self.seconds_left <= 0 or (self.limit.work is not None and self.used >= self.limit.work)

    def work_left(self, default: int) -> int:
        """Work until the work limit; without one, until `default` is used."""
        return max(0, (default if self.limit.work is None else self.limit.work) - self.used)

    def quiet(self) -> Budget:
        """Give the clock that is left, for a part of the work of which nobody is told."""
        left = self.seconds_left
        return Budget(None if left == float("inf") else Limit(time_s=max(left, 1e-9)))

    def keep(self, seconds: float) -> None:
        """Keep time for what comes after the search, at most half of what is left."""
        self._kept_s = min(seconds, max(self.seconds_left, 0.0) / 2)

    def spend(self, work: int) -> None:
        """Count work as done."""
        self.used += work

    def tell(self, what: str, part: float) -> None:
        """Report progress: `part` of the work is done, or more where the clock says so; never less than before."""
        if self._progress is not None:
            if self.limit.time_s is not None:
                part = max(part, self.seconds / self.limit.time_s)
            self._told = max(self._told, min(part, 1.0))
            self._progress(what, self._told)


@contextmanager
def stops_on_interrupt(budget: Budget) -> Iterator[None]:
    """Let the first Ctrl-C end a search with the best plan so far.

    The second one ends the program, as ever.

    Only the main thread is told of signals: elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        budget.stopped = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
