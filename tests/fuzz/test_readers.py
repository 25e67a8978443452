"""Every reader of files from outside, on a few damaged inputs; `make properties` tries 100,000 of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from tests.fuzz import runner
from tests.fuzz.runner import Tally, attempt, empty, search, warm_up
from tests.fuzz.targets import TARGETS

FEW = 25


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_is_read_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    target, folder = TARGETS[name], tmp_path / "in"
    assert warm_up(target, folder)
    tally = Tally(target=name)

    @settings(max_examples=max(2, round(FEW * target.share)), deadline=None, suppress_health_check=list(HealthCheck))
    @given(document=target.documents(), rng=st.randoms(use_true_random=False))
    def one(document: Any, rng: Random) -> None:
        attempt(target, target.write(document, rng, empty(folder)), tally)

    one()
    assert tally.read + tally.refused == tally.inputs >= 2


def _refuse(rule: str, *, named: bool = True) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        error = MoecastError("", file=path if named else None)
        error.args = (f"{path if named else ''}: {rule}",)
        raise error

    return read


def _spin(_: Path) -> object:
    begin = time.process_time()
    while time.process_time() < begin + 0.3:
        pass
    return None


BROKEN: dict[str, Callable[[Path], object]] = {
    "ZeroDivisionError": lambda _: 1 // 0,
    "MemoryError": lambda _: bytearray(1 << 62),
    "does not name the file": _refuse("wrong", named=False),
    "cannot be printed": _refuse("two\nlines"),
    "characters": _refuse("x" * 2000),
    "more than 0.2 s": _spin,
    # Far more than the limit: pages of a worker that a system takes back meanwhile do not hide it.
    "more than 16 MiB": lambda _: np.ones(32 << 20).sum(),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_what_no_reader_may_do_is_seen_and_its_input_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    monkeypatch.setattr(runner, "MOST_S", 0.2)
    monkeypatch.setattr(runner, "MOST_BYTES", 16 << 20)
    monkeypatch.setattr(runner, "limit_memory", lambda: None)
    good = dataclasses.replace(TARGETS["measurement"], read=lambda _: None)
    assert search(good, tmp_path, inputs=2, seed_=1).read == 2
    tally = search(dataclasses.replace(good, read=BROKEN[rule]), tmp_path, inputs=2, seed_=1)
    (kind,) = tally.failures
    assert rule in kind
    assert (tally.read, tally.refused, tally.failures[kind][0]) == (0, 0, 2)
    assert Path(tally.failures[kind][1]).is_file()
