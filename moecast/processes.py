"""Work spread over processes, which end when the one that started them does, however it ends.

What comes out never depends on how many there are: answers come in the order of what was asked, or with it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from moecast.errors import MoecastError
from moecast.threads import VARIABLE as THREADS

Given = TypeVar("Given")
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG

_given: list[Any] = []


class Workers(Generic[Given]):
    """Processes that answer questions about one thing, each with a copy of it; one job: this process itself.

    They start when the first question is asked, and end with the `with` block. A script that asks for more than one
    must guard its main part (``if __name__ == "__main__"``), as they import it.

    Parameters
    ----------
    given
        What is asked about; whoever answers may keep there what it found on the way.
    jobs
        How many; each computes on one thread.
    """

    def __init__(self, given: Given, jobs: int = 1) -> None:
        self.given, self.jobs = given, jobs
        self._pool: ProcessPoolExecutor | None = None
        self._before: set[int | None] = set()

    def __enter__(self) -> Workers[Given]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:  # nobody waits for what is still being answered
            for child in multiprocessing.active_children():
                if child.pid not in self._before:
                    child.terminate()
        self._pool = None

    def map(
        self, answer: Callable[[Given, Asked], Answer], asked: Sequence[Asked], *, at_once: int = 1
    ) -> Iterator[Answer]:
        """Answer in the order of what is asked; processes begin at once, this one where an answer is taken.

        Parameters
        ----------
        answer
            A function of a module, that a process finds by its name.
        at_once
            How many a process takes at a time: more where each is quick.

        Raises
        ------
        MoecastError
            A process died, most likely for want of memory; or what an answer raises.
        """
        if self.jobs == 1 or len(asked) <= at_once:
            return (answer(self.given, each) for each in asked)
        parts = [asked[first : first + at_once] for first in range(0, len(asked), at_once)]
        futures = [self._submit(answer, part) for part in parts]
        return (found for future in futures for found in self._result(future))

    def begin(self, answer: Callable[[Given, Asked], Answer], asked: Asked) -> Callable[[], Answer]:
        """Let a process begin one answer, beside what this one does; it is given when it is called for.

        One job: this process answers then.
        """
        if self.jobs == 1:
            return partial(answer, self.given, asked)
        future = self._submit(answer, [asked])
        return lambda: self._result(future)[0]

    def as_done(
        self, answer: Callable[[Given, Asked], Answer], asked: Sequence[Asked]
    ) -> Iterator[tuple[Asked, Answer]]:
        """As `map`, each with what was asked, as soon as there is an answer."""
        if self.jobs == 1:
            yield from ((each, answer(self.given, each)) for each in asked)
            return
        of = {self._submit(answer, [each]): each for each in asked}
        for future in as_completed(of):
            yield of.pop(future), self._result(future)[0]  # popped: answers of a long list are not all kept

    def _submit(self, answer: Callable[[Given, Asked], Answer], part: Sequence[Asked]) -> Future[list[Answer]]:
        if self._pool is None:
            self._before = {child.pid for child in multiprocessing.active_children()}
            context = multiprocessing.get_context("spawn")
            given = (self.given, os.getpid())
            self._pool = ProcessPoolExecutor(self.jobs, mp_context=context, initializer=_begin, initargs=given)
        try:
            return self._pool.submit(_answer, answer, part)
        except BrokenProcessPool as error:
            raise _died(self.jobs) from error

    def _result(self, future: Future[list[Answer]]) -> list[Answer]:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise _died(self.jobs) from error


def _died(jobs: int) -> MoecastError:
    return MoecastError(
        "a process died before it answered, most likely for want of memory: ask for fewer", field="jobs", value=jobs
    )


def _begin(given: object, parent: int) -> None:
    """Prepare a process: what it is asked about, and that it ends with its parent."""
    _given[:] = [given]
    os.environ[THREADS] = "1"  # as many processes as cores already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends its workers
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it was asked
            raise SystemExit(1)


def _answer(answer: Callable[[Any, Any], Any], part: Sequence[Any]) -> list[Any]:
    return [answer(_given[0], each) for each in part]
