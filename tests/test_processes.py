"""Work in several processes: the same answers in the same order, errors as they were, and nobody left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from moecast.errors import MoecastError
from moecast.processes import Workers


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes find the functions below by their names."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1])


def plus(given: list[int], asked: int) -> int:
    return given[0] + asked


def whose(_given: object, _asked: int) -> tuple[int, str]:
    return os.getpid(), os.environ["MOECAST_THREADS"]


def refused(_given: object, asked: int) -> int:
    if asked == 3:
        raise MoecastError("no threes", file="f.yaml", field="number", value=asked)
    return asked


def killed(_given: object, asked: int) -> int:
    if asked == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return asked


@pytest.mark.parametrize("jobs", [1, 2])
def test_answers_come_in_order_or_with_what_was_asked(jobs: int) -> None:
    with Workers([10], jobs) as workers:
        assert list(workers.map(plus, range(7))) == list(range(10, 17))
        assert list(workers.map(plus, range(7), at_once=3)) == list(range(10, 17))
        assert sorted(workers.as_done(plus, range(5))) == [(asked, 10 + asked) for asked in range(5)]
        assert list(workers.map(plus, [])) == []
        begun = [workers.begin(plus, asked) for asked in range(3)]
        assert [answer() for answer in reversed(begun)] == [12, 11, 10]


def test_processes_compute_on_one_thread_and_end_with_the_block() -> None:
    before = set(multiprocessing.active_children())
    with Workers(None, 2) as workers:
        found = list(workers.map(whose, range(4)))
        assert os.getpid() not in [process for process, _ in found]
        assert {threads for _, threads in found} == {"1"}
        with pytest.raises(MoecastError, match=r"f\.yaml: number = 3: no threes") as error:
            list(workers.map(refused, range(5)))
        assert (error.value.field, error.value.value) == ("number", 3)
    assert set(multiprocessing.active_children()) <= before


def test_a_process_that_dies_is_told_of() -> None:
    before = set(multiprocessing.active_children())
    with (
        pytest.raises(MoecastError, match="jobs = 2: a process died before it answered"),
        Workers(None, 2) as workers,
    ):
        list(workers.map(killed, range(3)))
    # The pool's own thread may have learnt of an end that is not noted yet, so one look is not enough.
    end_s = time.monotonic() + 10
    while set(multiprocessing.active_children()) - before and time.monotonic() < end_s:
        time.sleep(0.01)
    assert set(multiprocessing.active_children()) <= before
