"""`moecast capture train`, from text to trace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moecast.cli.capture import app
from moecast.errors import MoecastError
from moecast.traces import read_trace
from moecast.traces.capture.own.policies import POLICIES

TINY = ("--size", "tiny", "--steps", "12", "--threads", "1")


def invoke(*arguments: str | Path) -> tuple[str, str]:
    """What the command prints, in this process: on the standard output, and beside it."""
    done = CliRunner().invoke(app, ["train", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def in_a_process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moecast", "capture", "train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_trains_and_captures_the_same_bytes_each_time(text_folder: Path, tmp_path: Path) -> None:
    where = ("--text", text_folder, "--cache", tmp_path / "cache", "--out", tmp_path / "a.parquet")
    first = in_a_process(*TINY, *where, "--json")
    assert first.returncode == 0, first.stderr
    said = json.loads(first.stdout)
    trace = read_trace(tmp_path / "a.parquet")
    assert said["tokens"] == trace.n_tokens
    assert said["content_hash"] == trace.content_hash()
    assert said["steps"] == trace.meta.source["training"]["steps"] == 12
    assert trace.meta.source["policy"]["name"] == "aux-global"
    said_again, _ = invoke(*TINY, "--text", text_folder, "--cache", tmp_path / "b", "--out", tmp_path / "b.parquet")
    assert "Held-out loss" in said_again
    assert read_trace(tmp_path / "b.parquet").content_hash() == trace.content_hash()


def test_all_policies_are_made_but_those_that_are_there(text_folder: Path, tmp_path: Path) -> None:
    missing = ("capacity", "top-p")
    for name in POLICIES:
        if name not in missing:
            (tmp_path / f"{name}.parquet").touch()
    where = ("--text", text_folder, "--cache", tmp_path / "cache", "--out", tmp_path)
    printed, beside = invoke(*TINY, *where, "--policy", "all", "--json")
    assert "none: already there" in beside
    said = json.loads(printed)
    assert set(said) == set(missing)
    for name in missing:
        trace = read_trace(tmp_path / f"{name}.parquet")
        assert trace.meta.source["policy"]["name"] == name
        assert said[name]["content_hash"] == trace.content_hash()
        assert (tmp_path / "cache" / f"checkpoint-tiny-{name}.pt").exists()


def test_policies_are_listed_with_their_papers() -> None:
    printed, _ = invoke("--policy", "list")
    assert all(policy.name in printed and policy.source in printed for policy in POLICIES.values())
    as_json, _ = invoke("--policy", "list", "--json")
    assert list(json.loads(as_json)) == list(POLICIES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "huge"], "size = 'huge'"),
        (["--size", "tiny", "--policy", "best"], "policy = 'best'"),
        (["--size", "tiny", "--steps", "0"], "steps = 0"),
        (["--size", "tiny", "--minutes", "-1"], "minutes = -1"),
        (["--size", "tiny", "--device", "abacus"], "device = 'abacus'"),
        (["--size", "tiny", "--text", "nowhere"], "nowhere"),
        (["--size", "tiny", "--policy", "all"], "name a folder"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(arguments: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(MoecastError, match=said):
        invoke(*arguments, "--cache", tmp_path / "cache", "--out", tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()


def test_a_missing_or_unwritable_place_is_found_before_training(tmp_path: Path) -> None:
    with pytest.raises(MoecastError, match="--out"):
        invoke("--size", "tiny", "--cache", tmp_path)
    done = in_a_process("--size", "tiny", "--out", tmp_path / "none" / "t.parquet", "--cache", tmp_path)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert done.stderr.count("\n") == 1
