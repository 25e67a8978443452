"""`moecast plan --for training` in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moecast.cli.asked import Asked
from moecast.cli.plan_training import refuse_serving
from moecast.errors import MoecastError
from tests.cli.conftest import Run

ASKED = ("--for", "training", "--cluster", "dgx-h100", "--model", "config.json", "--gpus", "4", "--seed", "1")
JOB = ("--sequence", "128", "--batch", "8", "--drawn", "1")
QUICK = ("--scored", "12", "--placed", "2")


def test_a_job_comes_in_and_a_layout_to_run_goes_out(run: Run, small: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((small / "config.json").read_text())
    (tmp_path / "t.parquet").write_bytes((small / "t.parquet").read_bytes())
    more = (
        "--trace",
        "t.parquet",
        "--price",
        "h100=2.5/h",
        "--write-plan",
        "w.json",
        "--out",
        "o.json",
        "--report",
        "r.html",
    )
    done = run("plan", *ASKED, *JOB, *QUICK, *more, check=True)
    said = " ".join(done.stdout.split())
    assert "no layout of the searched space is faster than this by more than" in said
    assert "pretrain_gpt.py" in said
    assert "memory of the fullest rank" in said
    assert "if this is off by its own error" in said
    run("report", "o.json", "--out", "again.html", check=True)
    assert (tmp_path / "again.html").read_text() == (tmp_path / "r.html").read_text()
    found = json.loads((tmp_path / "o.json").read_text())
    winner, layout = found["winner"], found["winner"]["layout"]
    assert winner["step_time_s"] == min(one["step_time_s"] for one in found["timed"])
    assert winner["dollars_per_million_tokens"] == pytest.approx(2.5 / 3600 / winner["tokens_per_s_per_gpu"] * 1e6)
    assert found["certificate"]["least_step_s"] <= winner["step_time_s"]
    assert layout["tp"] * layout["cp"] * layout["dp"] * layout["pp"] == 4
    # The plan asked alone is a plan that train takes.
    held = [f"--{name}" for name in ("schedule", "microbatch", "recompute", "zero")]
    named = [text for name in held for text in (name, str(layout[name.removeprefix("--")]))]
    alone = ("--cluster", "dgx-h100", "--model", "config.json", "--trace", "t.parquet", "--plan", "w.json", *JOB)
    told = json.loads(run("train", *alone, *named, "--json", check=True).stdout)
    assert {name: told["degrees"][name] for name in ("tp", "pp", "ep", "dp")} == {
        name: layout[name] for name in ("tp", "pp", "ep", "dp")
    }
    assert told["memory_bytes"]["total"] == winner["memory_bytes"]["total"]


def test_options_of_a_recipe_hold_an_axis(run: Run, small: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((small / "config.json").read_text())
    held = ("--schedule", "1f1b", "--microbatch", "2", "--recompute", "full", "--zero", "0")
    done = run("plan", *ASKED, *JOB, *QUICK, *held, "--json", check=True)
    found = json.loads(done.stdout)
    for one in found["timed"]:
        layout = one["layout"]
        kept = (layout["schedule"], layout["microbatch"], layout["recompute"], layout["zero"])
        assert kept == ("1f1b", 2, "full", 0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--for", "training", "--slo", "tpot=20ms"), "--slo = 'tpot=20ms': is of serving"),
        (("--for", "training", "--requests", "closed:4"), "--requests"),
        (("--for", "training", "--weight-type", "fp8"), "--weight-type = 'fp8': --precision says it"),
        (("--batch", "64", "--slo", "tpot=20ms"), "--batch: is of a training job"),
        ((*ASKED, "--precision", "fp9"), "--precision = 'fp9': one of bf16, fp8"),
        ((*ASKED, "--schedule", "fast"), "schedule = 'fast': one of"),
        ((*ASKED, "--gpus", "400"), "gpus = 400"),
        ((*ASKED, "--batch", "7", "--sequence", "129"), "no layout is legal"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Run, small: Path, tmp_path: Path, asked: tuple[str, ...], said: str
) -> None:
    (tmp_path / "config.json").write_text((small / "config.json").read_text())
    done = run("plan", *asked, "--out", "o.json")
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o.json").exists()


def test_an_engine_that_serves_is_one_line() -> None:
    with pytest.raises(MoecastError, match=r"--engine = 'sglang': serves"):
        refuse_serving(Asked(engine="sglang"))
    refuse_serving(Asked(engine="megatron"))
