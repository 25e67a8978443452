"""The event loop: requests come, iterations end, whoever is at an end makes room.

Pools stand one behind the other: with one, it computes prompts and answers; with two, the first computes prompts and
the second answers, and a prompt's keys take time from one to the other.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moecast.sim.serving.arrivals import Source
from moecast.sim.serving.dispatch import Dispatcher
from moecast.sim.serving.instance import Instance
from moecast.sim.serving.records import PoolTimes, Records
from moecast.sim.serving.request import Request

Transfer = Callable[[Request, float], float]
"""From a request and the time when its prompt is done to the time when its keys are where it decodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Instances of one kind that share a queue.

    Parameters
    ----------
    instances
        Each with as many ranks.
    ranks
        Of each instance.
    dispatcher
        Deals requests to all their ranks.
    times
        What they did.
    """

    instances: tuple[Instance, ...]
    ranks: int
    dispatcher: Dispatcher
    times: PoolTimes


class EventLoop:
    """Runs requests through pools.

    Parameters
    ----------
    source
        Which requests come, and when.
    pools
        One, or one for prompts and one for answers.
    transfer
        With two: when keys arrive.
    progress
        Called with (requests at an end, requests in all).
    """

    def __init__(
        self,
        source: Source,
        pools: Sequence[Pool],
        records: Records,
        *,
        transfer: Transfer | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._source, self._pools, self._records = source, pools, records
        self._transfer, self._progress = transfer, progress
        self._ends: list[tuple[float, int, int, int]] = []
        self._version: dict[tuple[int, int], int] = {}
        self._moving: list[tuple[float, int, Request]] = []
        self._requests: dict[int, Request] = {}
        self._count = source.left

    def run(self) -> float:
        """Run until every request has all its tokens; when that is."""
        records, now_s = self._records, 0.0
        while True:
            come_s = self._source.next_s()
            moved_s = self._moving[0][0] if self._moving else math.inf
            end_s = self._next_end_s()
            now_s = min(come_s, moved_s, end_s)
            if now_s == math.inf:
                return records.now_s
            records.move(now_s)
            if come_s <= now_s:
                self._come(now_s)
            elif moved_s <= now_s:
                _, _, request = heapq.heappop(self._moving)
                self._records.given(np.array([request.id]), now_s)
                self._to_pool(1, request, now_s, prefilled=True)
            else:
                self._end(now_s)

    def _come(self, now_s: float) -> None:
        for request in self._source.take(now_s):
            self._records.arrived(request.id, request.arrival_s)
            if len(self._pools) > 1:
                self._requests[request.id] = request
            first = replace(request, output_tokens=1) if len(self._pools) > 1 else request
            self._to_pool(0, first, now_s)

    def _to_pool(self, index: int, request: Request, now_s: float, *, prefilled: bool = False) -> None:
        pool = self._pools[index]
        at = pool.dispatcher.choose(request)
        number, rank = divmod(at, pool.ranks)
        instance = pool.instances[number]
        cut = instance.come(rank, request, now_s, prefilled=prefilled)
        if not instance.busy:
            self._start(index, number, now_s)
        elif cut:
            self._plan(index, number)

    def _start(self, index: int, number: int, now_s: float) -> None:
        if self._pools[index].instances[number].start(now_s):
            self._plan(index, number)

    def _plan(self, index: int, number: int) -> None:
        """Note when an instance's planned iterations end; what was noted before is void."""
        key = (index, number)
        self._version[key] = self._version.get(key, 0) + 1
        heapq.heappush(self._ends, (self._pools[index].instances[number].end_s, index, number, self._version[key]))

    def _next_end_s(self) -> float:
        while self._ends:
            end_s, index, number, version = self._ends[0]
            if version == self._version[index, number]:
                return end_s
            heapq.heappop(self._ends)
        return math.inf

    def _end(self, now_s: float) -> None:
        _, index, number, _ = heapq.heappop(self._ends)
        pool = self._pools[index]
        for request_id in pool.instances[number].finish():
            pool.dispatcher.ended(request_id)
            if index + 1 < len(self._pools):
                self._hand_over(request_id, now_s)
            else:
                self._finished(request_id, now_s)
        if self._source.next_s() <= now_s:  # who comes at this very time is in the next iteration
            self._come(now_s)
        self._start(index, number, now_s)

    def _hand_over(self, request_id: int, now_s: float) -> None:
        """Send a prompt's keys to the pool that answers, where there is more than one token to give."""
        request = self._requests.pop(request_id)
        if request.output_tokens == 1:
            self._records.given(np.array([request_id]), now_s)
            self._finished(request_id, now_s)
            return
        assert self._transfer is not None
        heapq.heappush(self._moving, (self._transfer(request, now_s), request_id, request))

    def _finished(self, request_id: int, now_s: float) -> None:
        self._records.finished(request_id, now_s)
        self._source.ended(request_id, now_s)
        if self._progress is not None and self._records.ended % 64 == 0:
            self._progress(self._records.ended, self._count)
