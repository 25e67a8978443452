"""The event loop: requests come, iterations end, whoever is at an end makes room.

Pools stand one behind the other: with one, it computes prompts and answers; with two, the first
computes prompts and the second answers. A prompt's keys take time from one to the other, and start
on their way when the rank that they go to has room for them; who was dealt to a rank first goes
first.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moecast.sim.serving.arrivals import Source
from moecast.sim.serving.dispatch import Dispatcher
from moecast.sim.serving.instance import Instance
from moecast.sim.serving.kv_moves import Moves
from moecast.sim.serving.records import PoolTimes, Records
from moecast.sim.serving.request import Request


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
    moves
        With two: keys under way.
    progress
        Called with (requests at an end, requests in all).
    """

    def __init__(
        self,
        source: Source,
        pools: Sequence[Pool],
        records: Records,
        *,
        moves: Moves | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._source, self._pools, self._records = source, pools, records
        self._moves, self._progress = moves, progress
        self._ends: list[tuple[float, int, int, int]] = []
        self._version: dict[tuple[int, int], int] = {}
        self._requests: dict[int, Request] = {}
        self._held: dict[int, deque[tuple[Request, int, float]]] = {}
        self.held_s: list[float] = []
        self._count = source.left

    def run(self) -> float:
        """Run until every request has all its tokens; when that is."""
        records, now_s = self._records, 0.0
        while True:
            come_s = self._source.next_s()
            moved_s = self._moves.next_s() if self._moves is not None else math.inf
            end_s = self._next_end_s()
            now_s = min(come_s, moved_s, end_s)
            if now_s == math.inf:
                return records.now_s
            records.move(now_s)
            if come_s <= now_s:
                self._come(now_s)
            elif moved_s <= now_s:
                self._arrive(now_s)
            else:
                self._end(now_s)

    def _come(self, now_s: float) -> None:
        for request in self._source.take(now_s):
            self._records.arrived(request.id, request.arrival_s)
            if len(self._pools) > 1:
                self._requests[request.id] = request
            first = replace(request, output_tokens=1) if len(self._pools) > 1 else request
            self._to_pool(0, first, now_s)

    def _arrive(self, now_s: float) -> None:
        """Give the first token of those whose keys are there, and let them decode."""
        assert self._moves is not None
        for request, at in self._moves.take(now_s):
            self._records.given(np.array([request.id]), now_s)
            self._to_rank(1, at, request, now_s, prefilled=True)

    def _to_pool(self, index: int, request: Request, now_s: float) -> None:
        self._to_rank(index, self._pools[index].dispatcher.choose(request), request, now_s)

    def _to_rank(self, index: int, at: int, request: Request, now_s: float, *, prefilled: bool = False) -> None:
        pool = self._pools[index]
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
            source = pool.dispatcher.ended(request_id)
            if index + 1 < len(self._pools):
                self._hand_over(request_id, source, now_s)
            else:
                self._finished(request_id, now_s)
        if self._source.next_s() <= now_s:  # who comes at this very time is in the next iteration
            self._come(now_s)
        self._send_held(index, number, now_s)
        self._start(index, number, now_s)
        self._send_held(index, number, now_s)  # deciding an iteration may have given blocks back

    def _hand_over(self, request_id: int, source: int, now_s: float) -> None:
        """Deal a prompt to a rank of the pool that answers, where there is more than one token to give."""
        request = self._requests.pop(request_id)
        if request.output_tokens == 1:
            self._records.given(np.array([request_id]), now_s)
            self._finished(request_id, now_s)
            return
        at = self._pools[1].dispatcher.choose(request)
        self._held.setdefault(at, deque()).append((request, source, now_s))
        self._send(at, now_s)

    def _send_held(self, index: int, number: int, now_s: float) -> None:
        """Send what was held back for ranks of an instance that may have room now."""
        if index and self._held:
            each = self._pools[1].ranks
            first = number * each
            for at in [at for at in self._held if first <= at < first + each]:
                self._send(at, now_s)

    def _send(self, at: int, now_s: float) -> None:
        """Send the keys that wait for a rank, in order, as far as it has room."""
        assert self._moves is not None
        queue, (number, rank) = self._held[at], divmod(at, self._pools[1].ranks)
        while queue and self._pools[1].instances[number].promise(rank, queue[0][0]):
            request, source, since_s = queue.popleft()
            self.held_s.append(now_s - since_s)
            self._moves.start(request, source, at, now_s)
        if not queue:
            del self._held[at]

    def _finished(self, request_id: int, now_s: float) -> None:
        self._records.finished(request_id, now_s)
        self._source.ended(request_id, now_s)
        if self._progress is not None and self._records.ended % 64 == 0:
            self._progress(self._records.ended, self._count)
