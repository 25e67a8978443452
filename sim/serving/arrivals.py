"""When requests come: as many at a time as users wait (closed loop), at random, or as recorded.

A source gives the event loop the requests that have come by some time. Of a closed loop they come
as others end.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.serving.request import Request

Float = npt.NDArray[np.float64]

LAWS = ("closed", "poisson", "gamma")
MOST_CONCURRENCY = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalLaw:
    """How requests come.

    Parameters
    ----------
    name
        ``closed``: `concurrency` users, each of whom sends the next request when the last one is
        answered. ``poisson``: `rate_per_s` at random. ``gamma``: gaps of a gamma law with the
        coefficient of variation `cv`; above 1 they come in bursts, at 1 it is Poisson's.

    Raises
    ------
    MoecastError
        A law that there is none of, or a number out of range.
    """

    name: str
    concurrency: int = 0
    rate_per_s: float = 0.0
    cv: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.name not in LAWS:
            raise MoecastError("closed:N, poisson:RATE/s, gamma:RATE/s,CV or a file", field="requests", value=self.name)
        if self.name == "closed" and not 1 <= self.concurrency <= MOST_CONCURRENCY:
            rule = f"a whole number of 1 to {MOST_CONCURRENCY} requests in flight, as in closed:64"
            raise MoecastError(rule, field="requests", value=f"closed:{self.concurrency}")
        if self.name != "closed" and not (math.isfinite(self.rate_per_s) and self.rate_per_s > 0):
            raise MoecastError("requests per second, as in poisson:4/s", field="requests", value=self.rate_per_s)
        if not (math.isfinite(self.cv) and 0 < self.cv <= 100):
            raise MoecastError("a coefficient of variation, more than 0", field="requests", value=self.cv)

    def __str__(self) -> str:
        """As it is asked for."""
        if self.name == "closed":
            return f"closed:{self.concurrency}"
        return f"{self.name}:{self.rate_per_s:g}/s" + (f",{self.cv:g}" if self.name == "gamma" else "")

    def times_s(self, requests: int, rng: np.random.Generator) -> Float:
        """When each of so many requests comes; all at 0 where others' ends decide."""
        if self.name == "closed":
            return np.zeros(requests)
        shape = 1 / self.cv**2 if self.name == "gamma" else 1.0
        return np.cumsum(rng.gamma(shape, 1 / (shape * self.rate_per_s), requests))


def parse_arrivals(text: str) -> ArrivalLaw:
    """Read ``closed:64``, ``poisson:4/s`` or ``gamma:4/s,2``.

    Raises
    ------
    MoecastError
        It is none of these.
    """
    name, _, rest = text.partition(":")
    rule = "closed:N, poisson:RATE/s, gamma:RATE/s,CV or a file"
    if name not in LAWS or not rest:
        raise MoecastError(rule, field="requests", value=text)
    try:
        if name == "closed":
            return ArrivalLaw(name=name, concurrency=int(rest))
        rate, _, cv = rest.partition(",")
        return ArrivalLaw(name=name, rate_per_s=_rate(rate), cv=float(cv) if cv else 1.0)
    except ValueError as error:
        raise MoecastError(rule, field="requests", value=text) from error


def _rate(text: str) -> float:
    number, _, unit = text.partition("/")
    per_s = {"s": 1.0, "": 1.0, "min": 1 / 60, "h": 1 / 3600}
    if unit not in per_s:
        raise ValueError(text)
    return float(number) * per_s[unit]


class Source(Protocol):
    """Where the event loop's requests come from."""

    @property
    def left(self) -> int:
        """Requests that have not been taken."""
        ...

    def next_s(self) -> float:
        """When the next known one comes; infinity where that depends on others' ends, or there is none."""
        ...

    def take(self, now_s: float) -> list[Request]:
        """Those that have come by now, in order; each is taken once."""
        ...

    def ended(self, request_id: int, now_s: float) -> None:
        """Tell that a request has all its tokens."""
        ...


class OpenSource:
    """Requests that come at their own times, whatever becomes of the others."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = sorted(requests, key=lambda request: (request.arrival_s, request.id))
        self._next = 0

    @property
    def left(self) -> int:
        """Requests that have not been taken."""
        return len(self._requests) - self._next

    def next_s(self) -> float:
        """When the next one comes."""
        return self._requests[self._next].arrival_s if self.left else math.inf

    def take(self, now_s: float) -> list[Request]:
        """Those that have come by now."""
        first = self._next
        while self.left and self._requests[self._next].arrival_s <= now_s:
            self._next += 1
        return self._requests[first : self._next]

    def ended(self, request_id: int, now_s: float) -> None:
        """Nobody waits for it."""


class ClosedSource:
    """Users who send one request after another.

    Parameters
    ----------
    concurrency
        How many users.
    think_s
        From the last token of an answer to the arrival of the user's next request.
    """

    def __init__(self, requests: Sequence[Request], concurrency: int, think_s: float = 0.0) -> None:
        self._requests = list(requests)
        self._think_s = think_s
        self._next = 0
        self._due: list[tuple[float, int]] = [(0.0, user) for user in range(min(concurrency, len(self._requests)))]
        self._order = concurrency

    @property
    def left(self) -> int:
        """Requests that have not been taken."""
        return len(self._requests) - self._next

    def next_s(self) -> float:
        """When the next user sends one."""
        return self._due[0][0] if self._due and self.left else math.inf

    def take(self, now_s: float) -> list[Request]:
        """Those that have come by now."""
        taken = []
        while self.left and self._due and self._due[0][0] <= now_s:
            arrival_s, _ = heapq.heappop(self._due)
            taken.append(replace(self._requests[self._next], arrival_s=arrival_s))
            self._next += 1
        return taken

    def ended(self, request_id: int, now_s: float) -> None:
        """Let the user send the next one."""
        del request_id
        heapq.heappush(self._due, (now_s + self._think_s, self._order))
        self._order += 1
