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
    assert any("no host is counted" in line for line in plain["warnings"])
    assert any("bound is a lower bound" in line for line in plain["warnings"])
    slow = json.loads(run("train", *JOB, "--host-wait", "11 ms", "--json", check=True).stdout)
    assert not any("no host" in line for line in slow["warnings"])
    layers, passes = 26, 2 * plain["microbatches"]
    assert slow["step_time_s"] - plain["step_time_s"] == pytest.approx(0.011 * layers * passes, rel=0.01)
    h800 = json.loads(run("train", "--cluster", "h800-node", *JOB[2:], "--json", check=True).stdout)
    assert any(line.startswith("H800 SXM: no kernels of it were measured") for line in h800["warnings"])


def test_gradients_beside_microbatches(run: Run) -> None:
    job = ("train", "--cluster", "dgx-h100", "--nodes", 2, *JOB[2:], "--ep", 4)
    plain = json.loads(run(*job, "--json", check=True).stdout)
    beside = (*job, "--overlap-grad-reduce", "--overlap-param-gather")
    value = json.loads(run(*beside, "--ddp-bucket-size", 1000000, "--json", check=True).stdout)
    assert value["step_time_s"] < plain["step_time_s"]
    assert value["overlapped_s"] > plain["overlapped_s"] == 0
    assert sum(value["breakdown_s"].values()) == pytest.approx(value["step_time_s"])
    assert (value["recipe"]["overlap_grad_reduce"], value["recipe"]["bucket_parameters"]) == (True, 1000000)
    assert any("beside nothing" in line for line in plain["warnings"])
    assert not any("beside nothing" in line for line in value["warnings"])


def test_recorded_routing_trains(run: Run, small: Path) -> None:
    """Recorded sequences have their own lengths, whatever the recipe's."""
    job = ("train", "--cluster", "dgx-h100", "--sequence", 64, "--batch", 16, "--json", "--trace", small / "t.parquet")
    value = json.loads(run(*job, "--model", small / "config.json", check=True).stdout)
    assert value["labels"] == ["routing of prefill, not of training"]
    assert value["model_tflops_per_gpu"] > 0
    part = json.loads(run(*job, "--dims", small / "config.json", "--from-phase", "decode", check=True).stdout)
    assert "routing of decode, not of training" in part["labels"]


def test_every_output_says_that_routing_is_made(run: Run) -> None:
    label = "uniform routing, 26×64×6: made, not recorded; layers and tokens independent"
    assert json.loads(run("train", *JOB, "--json", check=True).stdout)["labels"] == [label]
    text = run("train", *JOB, check=True).stdout
    assert label in text
    assert "prompts of 256 tokens each (--sequence)" in text


def test_a_saved_job_is_asked_again_with_the_same_bytes(run: Run) -> None:
    recipe = ("--precision", "fp8", "--schedule", "gpipe", "--pp", 2, "--host-wait", "1 ms", "--drawn", 1)
    by_options = run("train", *JOB, *recipe, "--save-question", "q.yaml", "--json", check=True).stdout
    assert run("train", "q.yaml", "--json", check=True).stdout == by_options
    other = json.loads(run("train", "q.yaml", "--set", "schedule=1f1b", "--batch", 32, "--json", check=True).stdout)
    assert (other["schedule"], other["recipe"]["batch"]) == ("1f1b", 32)
    assert "override: training.schedule = 1f1b, in q.yaml gpipe" in other["warnings"]
    assert "override: training.batch = 32, in q.yaml 16" in other["warnings"]
    done = run("train", "q.yaml", "--set", "training.batch=0")
    assert "--set training.batch = 0: must be at least 1" in done.stderr
    done = run("sweep", "q.yaml", "--vary", "training.batch=16,32")
    assert "--vary training.batch = [16, 32]: this command does not use it" in done.stderr


def test_a_question_of_serving_trains_and_says_what_it_leaves(run: Run, tmp_path: Path) -> None:
    (tmp_path / "q.yaml").write_text(
        "workload: {phase: decode, context: 2048, topics: law}\nplan: {schedule: two-batch}\n"
    )
    value = json.loads(run("train", "q.yaml", *JOB, "--json", check=True).stdout)
    left = "workload.phase, workload.context, workload.topics, plan.schedule"
    assert f"not of a training step, in q.yaml: {left}" in value["warnings"]
    alone = json.loads(run("train", *JOB, "--json", check=True).stdout)
    assert value["step_time_s"] == alone["step_time_s"]


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (("--pp", 3), "--pp = 3: does not divide the 8 ranks"),
        (("--pp", 4, "--schedule", "1f2b"), "schedule = '1f2b': one of forward, gpipe"),
        (("--host-wait", "11 GB"), "--host-wait = '11 GB'"),
        (("--host-launch", "1 GB"), "--host-launch = '1 GB'"),
        (("--host-wait", "-1 ms"), "--host-wait = '-1 ms': a time is not negative"),
        (("--overlap-param-gather",), "--overlap-param-gather: needs --overlap-grad-reduce, and --zero of at least 1"),
        (("--moe-schedule", "fsmoe:1"), "moe_schedule = 'fsmoe:1': sequential, or fsmoe:D with D from 2 to 64"),
        (("--precision", "fp4"), "--precision = 'fp4': one of bf16, fp8"),
        (("--batch", 7), "batch = 7: must be a multiple of 8: 8 data-parallel ranks take 1 sequences at a time"),
        (("--pp", 8, "--schedule", "dualpipe", "--batch", 8), "schedule = 'dualpipe'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(run: Run, wrong: tuple[object, ...], line: str) -> None:
    done = run("train", *JOB, *wrong)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
