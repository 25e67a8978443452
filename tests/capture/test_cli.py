"""Both command lines, from text to trace, in their own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from moecast.traces.capture.__main__ import main

from moecast.traces import read_trace

TINY = ["--size", "tiny", "--steps", "12", "--threads", "1"]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=120)


def test_the_command_trains_and_captures_and_the_module_gives_the_same_bytes(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--text", text_folder, "--cache", tmp_path / "cache"]
    first = run("moecast", "capture", "train", *TINY, *where, "--out", tmp_path / "a.parquet", "--json")
    assert first.returncode == 0, first.stderr
    said = json.loads(first.stdout)
    trace = read_trace(tmp_path / "a.parquet")
    assert said["tokens"] == trace.n_tokens
    assert said["content_hash"] == trace.content_hash()
    assert said["steps"] == trace.meta.source["training"]["steps"] == 12
    where[-1] = tmp_path / "other"
    again = [*TINY, *map(str, where), "--out", str(tmp_path / "b.parquet")]
    assert main(again) == 0
    assert "Held-out loss" in capsys.readouterr().out
    assert read_trace(tmp_path / "b.parquet").content_hash() == trace.content_hash()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "huge"], "size = 'huge'"),
        (["--size", "tiny", "--steps", "0"], "steps = 0"),
        (["--size", "tiny", "--minutes", "-1"], "minutes = -1"),
        (["--size", "tiny", "--device", "abacus"], "device = 'abacus'"),
        (["--size", "tiny", "--text", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.parquet"
    assert main([*arguments, "--cache", str(tmp_path / "cache"), "--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert not out.exists()


def test_an_unwritable_place_is_found_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "tiny", "--out", str(tmp_path / "none" / "t.parquet"), "--cache", str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err
