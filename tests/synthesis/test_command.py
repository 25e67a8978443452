import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from moecast.cli.trace import app
from moecast.errors import MoecastError
from moecast.traces import read_meta, read_trace, write_trace
from tests.command_line import run_command
from tests.synthesis.made import halves


@pytest.fixture
def like(tmp_path):
    write_trace(halves(of_topics=True), tmp_path / "like.parquet")
    return tmp_path / "like.parquet"


def command(*arguments):
    return [sys.executable, "-m", "moecast", "trace", "synth", *map(str, arguments)]


def run(*arguments):
    return run_command("trace", "synth", *arguments)


def test_it_writes_a_labelled_trace_and_the_same_one_again(like, tmp_path):
    asked = ("--like", like, "--shape", "5x32x3", "--tokens", 4000, "--seed", 5, "--topics", "low=3,high=1", "--json")
    first, second = run(*asked, "--out", tmp_path / "a.parquet"), run(*asked, "--out", tmp_path / "b")
    assert first.returncode == 0, first.stderr
    values = [json.loads(done.stdout) for done in (first, second)]
    assert values[0]["content_hash"] == values[1]["content_hash"]
    assert (values[0]["tokens"], values[0]["layers"], values[0]["experts"], values[0]["choices"]) == (4000, 5, 32, 3)
    trace = read_trace(tmp_path / "b")
    assert trace.content_hash() == values[0]["content_hash"]
    assert read_meta(tmp_path / "a.parquet").model == "synthetic 5x32x3, like made up"


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (("--shape", "58x256"), "layers x experts x choices"),
        (("--shape", "4x4x8"), "more than the 4 experts"),
        (("--tokens", "0"), "tokens = 0"),
        (("--topics", "law"), "topics = 'law'"),
        (("--phase", "decode"), "of phase decode"),
        (("--like", "nowhere.parquet"), "no such file"),
        (("--out", "nowhere/t.parquet"), "nowhere"),
    ],
)
def test_bad_input_is_refused(like, tmp_path, asked, line):
    with pytest.raises(MoecastError, match=line):
        CliRunner().invoke(app, ["synth", *bad(like, tmp_path, asked)], catch_exceptions=False)
    assert not (tmp_path / "t.parquet").exists()


def test_bad_input_is_one_line(like, tmp_path):
    done = run(*bad(like, tmp_path, ("--shape", "0x4x2")))
    assert done.returncode == 2
    assert done.stderr.startswith("moecast: shape.layers = 0")
    assert done.stderr.count("\n") == 1


def bad(like, folder, asked):
    options = {"--like": str(like), "--tokens": "10", "--out": str(folder / "t.parquet")} | dict([asked])
    return [text for pair in options.items() for text in pair]


def test_killed_half_way_it_leaves_no_trace_that_is_not_whole(like, tmp_path):
    out = tmp_path / "long.parquet"
    process = subprocess.Popen(command("--like", like, "--tokens", 2_000_000_000, "--out", out))
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".long.parquet*")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert not out.exists()
