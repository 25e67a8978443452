"""The benchmark of measured training steps asks every row, and compares like with like."""

from __future__ import annotations

import csv
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = Path(os.environ.get("MOECAST_SHARED", ROOT.parent / "shared")) / "measured" / "training.csv"


@pytest.fixture(scope="module")
def training() -> Any:
    spec = importlib.util.spec_from_file_location("training_benchmark", ROOT / "benchmarks" / "training.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    if not ROWS.is_file():
        pytest.skip(f"no shared data at {ROWS} (MOECAST_SHARED)")
    with ROWS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_with_a_layout_can_be_asked(training: Any, rows: list[dict[str, str]]) -> None:
    asked = [row for row in rows if row["tp"]]
    assert len(asked) == len(rows) - 2
    for row in asked:
        model, cluster = training.model_of(row), training.cluster_of(row)
        assert len(training.gpus_of(cluster, int(row["gpus"]))) == int(row["gpus"]) <= cluster.n_gpus
        assert model.experts % int(row["ep"]) == 0
        assert training.measured_seconds(row, training.recipe_of(row)) > 0


def test_small_rows_are_answered_and_steps_grow_with_their_microbatches(
    training: Any, rows: list[dict[str, str]]
) -> None:
    answers = [training.answer(row, network="bound") for row in rows if row["id"].startswith("simumax-deepseek-v2")]
    times = [found.predicted_s for found in answers]
    assert len(times) == 3
    assert times == sorted(times)
    assert times[2] / times[1] == pytest.approx(4, rel=0.1)


def test_routing_is_exactly_even(training: Any) -> None:
    model = training.load_model("deepseek-v3")
    trace, step = training.even_routing(model, dp=4, tokens=4096, sequence=4096)
    chosen = trace.experts_TLK[step.token_T, 0]
    counts = [int((chosen == expert).sum()) for expert in range(model.experts)]
    assert min(counts) == max(counts) == 4 * 4096 * model.choices // model.experts


def test_ratios_are_of_rows_that_differ_in_one_thing(training: Any, rows: list[dict[str, str]]) -> None:
    made = [
        training.Answer(row=row, measured_s=1.0, predicted_s=1.0, assumed="", cpu_s=0.0) for row in rows if row["tp"]
    ]
    found = [(what, one.row["id"], other.row["id"]) for what, one, other in training.pairs(made)]
    assert len(found) == len(set(found)) >= 8
    for _, one, other in found:
        assert one.replace("-off", "-on") == other or one.replace("-mb1", "-mb4") == other
