"""How many threads the compiled loops and the readers use, and running work on them.

What comes out never depends on the number: parts are added up as whole numbers, or handed on in
order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from moecast.errors import MoecastError

Result = TypeVar("Result")

VARIABLE = "MOECAST_THREADS"
# Every thread holds tables or a batch of its own, and memory has to stay bounded on large machines
# too.
_MOST_BY_DEFAULT = 8


def thread_count() -> int:
    """Threads to use: `MOECAST_THREADS` where it is set, else one per core this process may run on, at most 8.

    Raises
    ------
    MoecastError
        The variable is no whole number above zero.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, _MOST_BY_DEFAULT)
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1024):
        raise MoecastError("must be a whole number from 1 to 1024", field=VARIABLE, value=text)
    return int(text)


def run_parts(parts: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run all parts at once, each on a thread of its own, and give their results in order.

    They run side by side as far as they release the interpreter's lock.
    """
    if len(parts) == 1:
        return [parts[0]()]
    with ThreadPoolExecutor(len(parts) - 1) as pool:
        others = [pool.submit(part) for part in parts[1:]]
        return [parts[0](), *(other.result() for other in others)]


def in_order(calls: Iterable[Callable[[], Result]], threads: int) -> Iterator[Result]:
    """Yield what the calls return, in order, while `threads` threads work on those that come next.

    At most `threads` results wait or are in work beside the one in the caller's hands. An error
    comes in its turn. With one thread the calls are made when their results are asked for.
    """
    if threads == 1:
        yield from (call() for call in calls)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for call in calls:
                waiting.append(pool.submit(call))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
