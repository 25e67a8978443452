"""Outputs replace only what they should, inputs are regular files, and a killed run leaves nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moecast.errors import MoecastError
from moecast.files import atomic_path, check_apart, check_outputs, check_writable, write_text


def test_a_symlink_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "real.json"]


def test_a_dangling_symlink_makes_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("real.json")
    write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "real.json").read_text() == "new"


def test_a_pipe_and_a_device_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with pytest.raises(MoecastError, match="name a regular file"):
            check_writable(tmp_path / name)
        with pytest.raises(MoecastError, match="name a regular file"):
            write_text(tmp_path / name, "x")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("way", ["name", "symlink", "hard link", "through a folder", "not there yet"])
def test_one_file_by_two_names_is_refused(tmp_path: Path, way: str) -> None:
    one, other = tmp_path / "a", tmp_path / "b"
    one.write_text("x")
    if way == "name":
        other = one
    elif way == "symlink":
        other.symlink_to(one)
    elif way == "hard link":
        other.hardlink_to(one)
    elif way == "through a folder":
        (tmp_path / "sub").mkdir()
        other = tmp_path / "sub" / ".." / "a"
    else:
        one, other = tmp_path / "new", tmp_path / "." / "new"
    with pytest.raises(MoecastError, match="is the same file as --trace") as caught:
        check_outputs({"--out": other}, {"--trace": one})
    assert "--out" in str(caught.value)
    with pytest.raises(MoecastError, match="is the same file as --out"):
        check_apart({"--out": one, "--export": other}, {})


def test_different_files_and_names_of_presets_are_fine(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    check_outputs({"--out": tmp_path / "b", "--html": None}, {"--trace": tmp_path / "a", "--cluster": "dgx-h200"})


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(MoecastError, match=r"out\.json: could not be written \(No space left on device\)"),
        atomic_path(tmp_path / "out.json"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_real_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(MoecastError, match="could not be written"), atomic_path(tmp_path / "out.json"):
        Path("/dev/full").write_text("x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_parts_of_dead_runs_are_cleared_and_others_are_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with atomic_path(tmp_path / "out.json") as part:
        name = part.name
        part.write_text("x")
    stale = tmp_path / name.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    alive = tmp_path / name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
    another = tmp_path / name.replace("out.json", "another.json").replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    elsewhere = tmp_path / f".out.json.{'x' * 40}-{dead.pid}-abc.part"
    for path in (stale, alive, another, elsewhere):
        path.write_text("half")
    write_text(tmp_path / "out.json", "whole")
    assert not stale.exists()
    assert alive.exists()
    assert another.exists()
    assert elsewhere.exists()


WRITER = """
import sys, time
from pathlib import Path
import moecast.cli as cli
from moecast.files import atomic_path

def slow():
    with atomic_path(sys.argv[1]) as part:
        part.write_text("half")
        print("ready", flush=True)
        time.sleep(60)

cli.app = slow
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, and so it is by what is started")
    command = [sys.executable, "-c", WRITER, str(tmp_path / "out.json")]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    assert len(list(tmp_path.iterdir())) == 1
    run.send_signal(number)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 128 + number
    assert said == f"moecast: stopped by {number.name}\n"
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_leaves_the_next_run_clears(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "out.json")]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    run.stdout.readline()
    run.kill()
    run.wait()
    run.stdout.close()
    assert len(list(tmp_path.iterdir())) == 1
    write_text(tmp_path / "out.json", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
