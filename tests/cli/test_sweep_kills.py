"""A sweep that is killed, again and again: no finished point is lost or answered twice, and nobody is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import polars as pl
import pytest

from moecast.cli.question_options import row_of_values
from moecast.errors import MoecastError

SWEEP = (
    "sweep", "--cluster", "dgx-h100", "--model", "config.json", "--routing", "uniform", "--phase", "decode", "--steps",
    "1", "--network", "bound", "--over", "plan.tp=1,3", "--out", "s.json", "--parquet", "s.parquet",
)  # fmt: skip


def start(folder: Path, mark: str, batches: int = 4, jobs: int = 2) -> subprocess.Popen[str]:
    more = ("--over", f"workload.tokens_per_rank=1:{batches}:+1", "--jobs", str(jobs))
    return subprocess.Popen(
        [sys.executable, "-m", "moecast", *SWEEP, *more],
        cwd=folder,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "MOECAST_MARK": mark},
    )


def left_behind(mark: str) -> list[int]:
    """Processes of a run, by a mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            if f"MOECAST_MARK={mark}".encode() in (process / "environ").read_bytes() and state != "Z":
                found.append(int(process.name))
    return found


def finished(journal: Path) -> list[int]:
    if not journal.exists():
        return []
    return [json.loads(line)["point"] for line in journal.read_text().split("\n")[1:-1]]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
@pytest.mark.slow
@pytest.mark.parametrize(("kills", "batches"), [(20, 40)])
def test_kills(small: Path, tmp_path: Path, kills: int, batches: int) -> None:
    (tmp_path / "config.json").write_text((small / "config.json").read_text())
    journal, known = tmp_path / "s.json.points", []
    for kill in range(kills):
        mark = uuid.uuid4().hex
        running = start(tmp_path, mark, batches, jobs=1 + kill % 2)  # who goes on need not have as many
        until = time.monotonic() + 120
        while len(finished(journal)) < len(known) + 1 + (kill % 3 == 1) and running.poll() is None:
            assert time.monotonic() < until, "no point in two minutes"
            time.sleep(0.05)
        assert running.poll() is None, running.communicate()[1]
        running.send_signal(signal.SIGKILL)
        running.communicate()
        gone = time.monotonic() + 10
        while left_behind(mark) and time.monotonic() < gone:
            time.sleep(0.05)
        assert not left_behind(mark)
        now = finished(journal)
        assert now[: len(known)] == known  # nothing is lost
        assert len(now) == len(set(now))  # and nothing repeated
        known = now
    ended = start(tmp_path, "end", batches)
    assert ended.communicate()[1] is not None
    assert ended.returncode == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert len(found["points"]) == 2 * batches
    values = [tuple(point["values"].values()) for point in found["points"]]
    assert values == [(tp, batch) for tp in (1, 3) for batch in range(1, batches + 1)]
    refused = [point["refused"] for point in found["points"] if point["values"]["plan.tp"] == 3]
    assert all("tp = 3" in reason for reason in refused)
    assert all(point["prediction"] for point in found["points"] if point["values"]["plan.tp"] == 1)
    assert not journal.exists()
    assert pl.read_parquet(tmp_path / "s.parquet").height == 2 * batches


def test_a_journal_of_another_sweep_is_not_taken(small: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((small / "config.json").read_text())
    (tmp_path / "s.json.points").write_text('{"sweep": "another"}\n')
    running = start(tmp_path, "other")
    assert "s.json.points: is the journal of another sweep" in running.communicate()[1]
    assert running.returncode == 2
    assert (tmp_path / "s.json.points").exists()


def test_rows_of_values() -> None:
    assert row_of_values("16:512:x2", field="f") == ["16", "32", "64", "128", "256", "512"]
    assert row_of_values("16:60:+16", field="f") == ["16", "32", "48"]
    assert row_of_values("fluid:0.3%", field="f") == ["fluid:0.3%"]
    for wrong in ("16:8:x2", "16:32:x1", "16:32:+0", "0:32:x2"):
        with pytest.raises(MoecastError, match="a row rises"):
            row_of_values(wrong, field="f")
