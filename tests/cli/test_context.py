"""Ranks that share sequences, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Run

ASKED = (
    "--cluster", "dgx-h200", "--model", "deepseek-v2-lite", "--routing", "uniform", "--isl", 256, "--network", "bound",
    "--steps", 1, "--no-gains",
)  # fmt: skip


@pytest.mark.parametrize("exchange", ["ring", "all-gather", "token-ring"])
def test_prefill_with_shared_sequences(run: Run, tmp_path: Path, exchange: str) -> None:
    asked = (*ASKED, "--tokens-per-rank", 1024, "--cp", 4, "--context-exchange", exchange)
    done = run("simulate", *asked, "--json", "--timeline", "t.json", "--save-question", "q.yaml", check=True)
    value = json.loads(done.stdout)
    assert (value["plan"]["cp"], value["plan"]["dp"], value["plan"]["context_exchange"]) == (4, 2, exchange)
    assert f"override: --context-exchange {exchange}" in value["warnings"]
    assert sum(value["breakdown_s"].values()) == pytest.approx(value["step_time_s"])
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    tracks = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert any("context" in track for track in tracks) == (exchange != "all-gather")
    again = json.loads(run("simulate", "q.yaml", "--json", check=True).stdout)
    assert again["step_time_s"] == value["step_time_s"]


def test_decode_keeps_a_part_of_each_cache(run: Run) -> None:
    asked = (*ASKED, "--phase", "decode", "--context", 4096)
    alone, shared = (
        json.loads(run("simulate", *asked, "--tokens-per-rank", 8 * cp, "--cp", cp, "--json", check=True).stdout)
        for cp in (1, 4)
    )
    assert shared["memory_bytes"]["kv"] == pytest.approx(alone["memory_bytes"]["kv"], rel=1e-3)
    assert shared["plan"]["dp"] == 2


def test_place_and_validate_with_shared_sequences(run: Run, small: Path, tmp_path: Path) -> None:
    asked = ("--cluster", "dgx-h200", "--trace", small / "t.parquet", "--tokens-per-rank", 16, "--steps", 1)
    placed = ("place", *asked, "--cp", 2, "--solver", "eplb", "--json", "--out")
    ring = json.loads(run(*placed, "ring.json", check=True).stdout)
    assert ring["bound_s"] is None
    assert "not for context exchange ring" in ring["note"]
    gathered = json.loads(run(*placed, "plan.json", "--context-exchange", "all-gather", check=True).stdout)
    assert 0 < gathered["bound_s"] <= gathered["objective_s"]
    made = json.loads((tmp_path / "plan.json").read_text())
    assert (made["cp"], made["context_exchange"], made["context_split"]) == (2, "all-gather", "zig-zag")
    seen = json.loads(run("simulate", *asked, "--plan", "plan.json", "--json", check=True).stdout)
    assert seen["plan"]["context_exchange"] == "all-gather"


@pytest.mark.parametrize("exchange", ["ring", "all-gather"])
def test_train_with_shared_sequences(run: Run, exchange: str) -> None:
    job = ("--cluster", "dgx-h100", "--model", "deepseek-v2-lite", "--routing", "uniform", "--batch", 8)
    asked = ("train", *job, "--sequence", 2048, "--cp", 4, "--context-exchange", exchange, "--json")
    value = json.loads(run(*asked, check=True).stdout)
    assert (value["degrees"]["cp"], value["degrees"]["dp"]) == (4, 2)
    assert value["tokens_per_s"] * value["step_time_s"] == pytest.approx(8 * 2048)
    refused = run("train", *job, "--sequence", 256, "--cp", 4, "--context-exchange", "token-ring")
    assert refused.returncode == 2
    assert "no backward pass here" in refused.stderr


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (("--context-exchange", "none"), "context_exchange = 'none': one of ring, all-gather, token-ring"),
        (("--context-split", "none"), "context_split = 'none': one of zig-zag, contiguous, zeppelin"),
        (("--context-split", "zeppelin", "--context-exchange", "all-gather"), "go together in rings only"),
        (("--phase", "mixed"), "cp = 2: prompts and running sequences of one step are not shared"),
        (("--dispatch", "stay"), "cp = 2: tokens that stay with their experts cannot share sequences: use cp 1"),
    ],
)
def test_what_is_refused(run: Run, wrong: tuple[str, ...], line: str) -> None:
    asked = run("simulate", *ASKED, "--tokens-per-rank", 64, "--cp", 2, *wrong)
    assert asked.returncode == 2
    assert line in asked.stderr
    assert len(asked.stderr.strip().splitlines()) == 1
