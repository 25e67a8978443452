"""The replay on gloo: four processes through the command line's own way in, and one process that is lied to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moecast.errors import MoecastError
from moecast.sim import Plan, Sites, draw_steps, kernels_on, load_model
from moecast.topology import load_cluster
from moecast.validate import read_measurement, validate
from moecast.validate.job import Job, join_job
from moecast.validate.launch import launch_line
from moecast.validate.replay import Effort, exchange_rows, replay, row_bytes, serve_step
from tests.validate.cases import Question, question

ROOT = Path(__file__).resolve().parents[2]
QUICK = Effort(repeats=1, warmup=0)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """A job of one process."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with join_job(1) as job:
        yield job


def leaving_bytes(asked: Question) -> dict[str, float]:
    """Bytes that leave ranks per step, counted choice by choice."""
    layout = Sites.of(asked.cluster, asked.plan)
    steps = draw_steps(asked.trace, asked.workload, ranks=asked.plan.ranks)
    served = [serve_step(layout, asked.plan, asked.trace, step) for step in steps]
    away = sum(int(((s.rank_TLK >= 0) & (s.rank_TLK != s.source_T[:, None, None])).sum()) for s in served)
    return {
        name: away * width / len(steps)
        for name, width in row_bytes(asked.model, asked.plan, asked.cluster.hardware).items()
    }


@pytest.mark.slow
def test_four_processes_move_the_plans_own_rows(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    command = [*launcher, "-m", "tests.validate.replay_job", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = read_measurement(tmp_path / "measurement.json")
    asked = question(ranks=4, groups=2)
    assert (measured.ranks, measured.layers, measured.steps, measured.backend) == (4, 3, 2, "gloo")
    assert measured.checked
    served_rows = 2 * int((asked.trace.experts_TLK[:40] < 8).sum())
    assert 0 < measured.rows_checked <= served_rows
    moved = leaving_bytes(asked)
    assert measured.dispatch_bytes == moved["dispatch"]
    assert measured.combine_bytes == moved["combine"]
    assert measured.expert_s_WLG is not None
    assert measured.exchange_s > 0
    damaged = json.loads((tmp_path / "damaged.json").read_text())
    assert all("dispatch of layer 1 at rank" in line for line in damaged if line)
    assert any(damaged)
    ladder = validate(asked.whole, measurement=measured)
    assert ladder.rungs[-1].exchange_s == measured.exchange_s
    assert ladder.rungs[-1].elsewhere == f"gloo on {measured.hardware[0]}"


def test_one_process_is_its_own_peer(alone: Job) -> None:
    asked = question(ranks=1)
    measured = replay(alone, *asked.arguments, effort=QUICK)
    assert measured.dispatch_bytes == measured.combine_bytes == 0
    assert measured.exchange_s > 0
    assert measured.expert_s_WLG is None


def test_rows_that_change_places_are_noticed(alone: Job) -> None:
    def swap(received: torch.Tensor, *rest: object) -> None:
        exchange_rows(received, *rest)  # type: ignore[arg-type]
        received[[0, 1]] = received[[1, 0]]

    with pytest.raises(MoecastError, match=r"dispatch of layer 0 at rank 0: byte \d+ of row 0 \(token 0 of rank 0"):
        replay(alone, *question(ranks=1).arguments, effort=QUICK, exchange=swap)


def test_a_job_of_another_size_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(MoecastError, match=r"the plan has 4 ranks: start it with torchrun .*--nproc-per-node 4"),
        join_job(4),
    ):
        pass
    assert "--nnodes 4 --nproc-per-node 8" in launch_line(32)


def test_rows_are_as_wide_as_the_engine_sends_them() -> None:
    """TensorRT-LLM sends bf16 to experts in FP8 by blocks, others FP8; what the plan says goes before both."""
    model, cluster = load_model("deepseek-v3"), load_cluster("dgx-h200")
    plan = Plan.contiguous(model, ep=8, groups=1)
    widths = [
        row_bytes(model, asked, kernels_on(cluster, engine=engine).hardware)["dispatch"]
        for asked, engine in ((plan, "sglang"), (plan, "trtllm"), (plan.with_(dispatch_type="nvfp4"), "trtllm"))
    ]
    assert widths == [model.copy_bytes(name) for name in ("fp8", "bf16", "nvfp4")]


def test_effort_has_at_least_one_repeat() -> None:
    with pytest.raises(MoecastError, match="repeats = 0: must be at least 1"):
        Effort(repeats=0)
