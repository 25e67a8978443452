"""``moecast train`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Run

JOB = ("--cluster", "dgx-h100", "--model", "deepseek-v2-lite", "--routing", "uniform", "--sequence", 256, "--batch", 16)
SCHEDULES = ("gpipe", "1f1b", "1f1b_overlapped", "interleaved_1f1b", "zb_h1", "zb_v", "dualpipe", "dualpipe_v")


def test_train_for_machines(run: Run, tmp_path: Path) -> None:
    done = run("train", *JOB, "--pp", 4, "--tp", 2, "--json", "--out", "p.json", "--timeline", "t.json", check=True)
    value = json.loads(done.stdout)
    assert value == json.loads((tmp_path / "p.json").read_text())
    assert value["degrees"] == {"tp": 2, "cp": 1, "dp": 1, "pp": 4, "virtual": 1, "ep": 2, "etp": 1}
    assert value["tokens_per_s"] * value["step_time_s"] == pytest.approx(16 * 256)
    assert sum(value["breakdown_s"].values()) == pytest.approx(value["step_time_s"])
    memory = value["memory_bytes"]
    parts = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers")
    assert sum(memory[part] for part in parts) == memory["total"]
    assert value["in_flight_P"] == [4, 3, 2, 1]
    assert len(value["waiting_P"]) == 4
    assert all(0 <= part < 1 for part in value["waiting_P"])
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert {event["args"]["microbatch"] for event in events if "microbatch" in event.get("args", {})} == set(range(16))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_of_a_pipeline_trains(run: Run, schedule: str) -> None:
    value = json.loads(run("train", *JOB, "--pp", 4, "--schedule", schedule, "--json", check=True).stdout)
    assert value["schedule"] == schedule
    assert value["degrees"]["virtual"] == (2 if schedule in ("interleaved_1f1b", "zb_v", "dualpipe_v") else 1)
    assert value["model_tflops_per_gpu"] > 0


def test_what_a_step_takes_is_shown_as_a_table(run: Run) -> None:
    text = run("train", *JOB, "--precision", "fp8", "--recompute", "full", "--optimizer", "muon", check=True).stdout
    for row in ("step time", "model TFLOP/s per GPU", "ranks do nothing", "optimizer muon", "precision fp8", "fits"):
        assert row in " ".join(text.split())


def test_what_flatters_is_said(run: Run) -> None:
    plain = json.loads(run("train", *JOB, "--json", check=True).stdout)
    assert any("no wait for hosts is counted" in line for line in plain["warnings"])
    assert any("bound is a lower bound" in line for line in plain["warnings"])
    slow = json.loads(run("train", *JOB, "--host-wait", "11 ms", "--json", check=True).stdout)
    assert not any("no wait for hosts" in line for line in slow["warnings"])
    layers, passes = 26, 2 * plain["microbatches"]
    assert slow["step_time_s"] - plain["step_time_s"] == pytest.approx(0.011 * layers * passes, rel=0.01)
    b200 = json.loads(run("train", "--cluster", "dgx-b200", *JOB[2:], "--json", check=True).stdout)
    assert any(line.startswith("B200 SXM: the part of its peaks") for line in b200["warnings"])


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (("--pp", 3), "--pp = 3: does not divide the 8 ranks"),
        (("--pp", 4, "--schedule", "1f2b"), "schedule = '1f2b': one of forward, gpipe"),
        (("--host-wait", "11 GB"), "--host-wait = '11 GB'"),
        (("--host-wait", "-1 ms"), "--host-wait = '-1 ms': a time is not negative"),
        (("--precision", "fp4"), "--precision = 'fp4': one of bf16, fp8"),
        (("--batch", 7), "batch = 7: 8 data-parallel ranks take 1 sequences at a time"),
        (("--pp", 8, "--schedule", "dualpipe", "--batch", 8), "schedule = 'dualpipe'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(run: Run, wrong: tuple[object, ...], line: str) -> None:
    done = run("train", *JOB, *wrong)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
