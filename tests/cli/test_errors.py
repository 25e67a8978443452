"""Bad input: one line that names what is wrong, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moecast.sim import Plan, write_plan

from .conftest import CONFIG, Run

CLUSTER = ("--cluster", "dgx-h200")
PROGRESS = re.compile(r": (at work|\d+%) after \d+ s$")  # on a slow machine, as where nothing is compiled yet


def refused(done: object, *words: str) -> None:
    """Exit code 2, one line on stderr with all the words (and how far the work was), nothing on stdout."""
    assert done.returncode == 2, done
    lines = [line for line in done.stderr.splitlines() if line.strip() and not PROGRESS.search(line)]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in lines[0], lines[0]


def simulate(small: Path, *more: object, trace: Path | None = None, model: Path | None = None) -> list[object]:
    chosen = ["--model", model or small / "config.json", "--trace", trace or small / "t.parquet"]
    return ["simulate", *CLUSTER, *chosen, "--tokens-per-rank", 32, "--steps", 1, "--network", "bound", *more]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("preset: dgx-h200\nnodes: 2\nbandwith: 400 Gb/s\n", ["bandwith"]),
        ("preset: dgx-h200\nnodes: minus two\n", ["nodes"]),
        ("preset: dgx-h900\n", ["dgx-h900"]),
        ("[1, 2", ["YAML"]),
    ],
)
def test_cluster_file(run: Run, small: Path, tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    done = run("simulate", "--cluster", file, "--model", small / "config.json", "--trace", small / "t.parquet")
    refused(done, "c.yaml", *words)


def test_trace_file_that_is_truncated(run: Run, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "cut.parquet"
    file.write_bytes((small / "t.parquet").read_bytes()[:-700])
    refused(run(*simulate(small, trace=file)), "cut.parquet")


def test_trace_file_of_another_tool(run: Run, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"a": [1, 2]}), file)
    refused(run(*simulate(small, trace=file)), "foreign.parquet")


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [("num_hidden_layers", 2, "layers"), ("num_experts", 32, "experts"), ("num_experts_per_tok", 2, "choices")],
)
def test_trace_of_another_shape_than_the_model(
    run: Run, small: Path, tmp_path: Path, field: str, value: int, word: str
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG | {field: value}))
    refused(run(*simulate(small, model=file)), "t.parquet", word)


def test_trace_too_small_names_the_most_that_fits(run: Run, small: Path) -> None:
    refused(run(*simulate(small, "--steps", 5000)), "15 steps fit", "reuse")


def test_plan_that_misses_an_expert(run: Run, small: Path, tmp_path: Path) -> None:
    plan = Plan.contiguous(layers=3, experts=16, choices=4, ep=8).to_json()
    plan["slots"][0][1][3] = [0, 1]
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan))
    refused(run(*simulate(small, "--plan", file)), "plan.json", "misses expert")


def test_plan_that_overfills_a_rank(run: Run, small: Path, tmp_path: Path) -> None:
    plan = Plan.contiguous(layers=3, experts=16, choices=4, ep=8).to_json() | {"slots_per_rank": [2] * 7 + [1]}
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan))
    refused(run(*simulate(small, "--plan", file)), "plan.json", "rank 7 holds more experts")


def test_plan_that_overfills_the_memory(run: Run, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG | {"hidden_size": 32768, "intermediate_size": 131072}))
    out = tmp_path / "plan.json"
    done = run(
        "place",
        *CLUSTER,
        "--model",
        file,
        "--trace",
        small / "t.parquet",
        "--tokens-per-rank",
        16,
        "--steps",
        1,
        "--solver",
        "eplb",
        "--out",
        out,
    )
    refused(done, "GiB")
    assert not out.exists()


def test_more_ranks_than_gpus(run: Run, small: Path, tmp_path: Path) -> None:
    write_plan(Plan.contiguous(layers=3, experts=16, choices=4, ep=16), tmp_path / "plan.json")
    refused(run(*simulate(small, "--plan", tmp_path / "plan.json")), "16", "8 GPUs")


@pytest.mark.parametrize("limit", ["0s", "-3s", "60"])
def test_time_limit(run: Run, small: Path, tmp_path: Path, limit: str) -> None:
    out = tmp_path / "plan.json"
    done = run(
        "place",
        *CLUSTER,
        "--model",
        small / "config.json",
        "--trace",
        small / "t.parquet",
        "--time-limit",
        limit,
        "--out",
        out,
    )
    refused(done, "--time-limit")
    assert not out.exists()


@pytest.mark.parametrize("command", ["simulate", "place", "report", "demo"])
def test_output_folder_that_is_not_there(run: Run, small: Path, tmp_path: Path, command: str) -> None:
    arguments = {
        "simulate": simulate(small, "--out", "missing/p.json"),
        "place": ["place", *CLUSTER, "--trace", small / "t.parquet", "--out", "missing/p.json"],
        "report": ["report", small / "config.json", "--out", "missing/r.html"],
        "demo": ["demo", "--out", small / "config.json" / "out"],
    }
    refused(run(*arguments[command]), "missing" if command != "demo" else "config.json")
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--network", "packets", "bound, fluid"),
        ("--dispatch", "per_token", "per_choice"),
        ("--phase", "train", "prefill"),
        ("--part", "half", "planning"),
        ("--model", "gpt-5", "deepseek-v3"),
        ("--fabric", "torus", "leaf-spine"),
        ("--topics", "law", "law"),
        ("--ep", "3", "3"),
    ],
)
def test_options(run: Run, small: Path, option: str, value: str, word: str) -> None:
    refused(run(*simulate(small, option, value)), word)


def test_report_of_a_file_that_is_no_prediction(run: Run, small: Path, tmp_path: Path) -> None:
    refused(run("report", small / "config.json", "--out", tmp_path / "r.html"), "config.json")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("command", [("trace", "info"), ("trace", "import", "--out", "t.parquet")], ids=" ".join)
def test_what_the_system_refuses(run: Run, command: tuple[str, ...]) -> None:
    name = "a" * 300  # longer than any file system takes: unlike a missing file, seen by nothing but the system
    refused(run(*command, name), name, "File name too long")


@pytest.mark.parametrize(
    "asked",
    [
        ["topology", "show", "dgx-h200"],
        ["model", "show", "deepseek-v3"],
        ["trace", "info", "shipped"],
        ["simulate", "--help"],
        ["simulate", "--cluster", "dgx-h200", "--model", "deepseek-v2-lite", "--routing", "uniform", "--steps", "1",
         "--network", "bound", "--phase", "decode"],
    ],
)  # fmt: skip
def test_a_terminal_that_knows_ascii_only(run: Run, asked: list[str]) -> None:
    done = run(*asked, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "?" not in done.stdout.replace("What if?", "")
    if asked[0] == "simulate" and "--steps" in asked:
        assert " us" in done.stdout


def test_a_terminal_that_knows_ascii_only_is_told_what_is_wrong(run: Run) -> None:
    done = run("model", "show", "x" * 100, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"})
    refused(done, "xxx...: no such file")
    assert done.stderr.isascii()


@pytest.mark.parametrize(("model", "code"), [("deepseek-v3", 0), ("no-such", 2)])
def test_streams_that_were_closed_take_everything(model: str, code: int) -> None:
    command = f"{shlex.quote(sys.executable)} -m moecast model show {model}"
    for closed in (">&-", "2>&-", ">&- 2>&- <&-"):
        done = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


def test_an_output_that_is_an_input_is_refused_before_any_work(run: Run, small: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.parquet"
    trace.write_bytes((small / "t.parquet").read_bytes())
    before = trace.read_bytes()
    (tmp_path / "link.parquet").symlink_to(trace)
    for out in (trace, tmp_path / "link.parquet"):
        refused(run(*simulate(small, "--out", out, trace=trace)), "--out", "same file as --trace")
        refused(
            run("place", *CLUSTER, "--trace", trace, "--model", small / "config.json", "--out", out), "--out", "--trace"
        )
        refused(run("trace", "export", trace, "--lists", "--out", out), "same file as the trace")
        refused(run("trace", "synth", "--like", trace, "--tokens", 100, "--out", out), "same file as --like")
    refused(run(*simulate(small, "--out", "a.json", "--timeline", "a.json")), "--timeline", "same file as --out")
    refused(run("report", trace, "--out", trace), "same file as")
    assert trace.read_bytes() == before


def test_inputs_that_never_end_are_not_waited_for(run: Run, small: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.parquet")
    os.mkfifo(tmp_path / "pipe.json")
    pipe = tmp_path / "pipe.json"
    refused(run(*simulate(small, trace=tmp_path / "pipe.parquet")), "pipe.parquet", "a pipe")
    refused(run(*simulate(small, model=pipe)), "pipe.json", "a pipe")
    refused(run(*simulate(small, "--plan", pipe)), "pipe.json", "a pipe")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    zero = tmp_path / "zero.yaml"
    refused(
        run("simulate", "--cluster", zero, "--model", small / "config.json", "--trace", small / "t.parquet"),
        "zero.yaml",
        "a device",
    )
    for name in ("pipe.npz", "pipe.pt", "pipe.jsonl"):
        os.mkfifo(tmp_path / name)
        refused(run("trace", "import", tmp_path / name, "--out", "o.parquet"), name)
    refused(run("place", "--load", pipe, "--ep", 2, "--out", "o.json"), "pipe.json", "a pipe")
    refused(run("report", pipe, "--out", "r.html"), "pipe.json", "a pipe")


@pytest.mark.parametrize(
    "more",
    [
        ["--steps", 10**12], ["--nodes", 10**9], ["--tokens-per-rank", 10**12], ["--slots-per-rank", 10**9],
        ["--context", 10**15], ["--steps", "9" * 6000], ["--ep", 10**9], ["--tp", 10**9],
    ],
)  # fmt: skip
def test_numbers_that_no_cluster_has(run: Run, small: Path, more: list[object]) -> None:
    done = run(*simulate(small, *more))
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert str(more[0]).lstrip("-").replace("-", "_") in done.stderr.replace("-", "_")
