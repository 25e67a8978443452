"""Rows of measured training steps: every one with a layout is asked, and like is compared with like."""

from __future__ import annotations

import importlib.util
import sys
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moecast.sim import ModelShape, load_model
from moecast.traces import RoutingTrace
from moecast.validate.published import training
from moecast.validate.published.row_files import SHIPPED, Fields, read_rows
from moecast.validate.published.training_recipe import OF_A_SUM, OF_LATENT_SUMS, OPERATIONS, SUMS, operations

ROOT = Path(__file__).resolve().parents[2]
ROWS = read_rows(SHIPPED / "training.csv").rows


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("training_benchmark", ROOT / "benchmarks" / "training.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def row(**changes: str) -> Fields:
    """The smallest row that ships, changed."""
    (found,) = (row for row in ROWS if row["id"] == "simumax-deepseek-v2-ep8pp1-m4")
    return {**found, **changes}


def test_every_row_with_a_layout_can_be_asked() -> None:
    asked = [row for row in ROWS if not training.unasked(row)]
    assert len(asked) == len(ROWS) - 2
    for found in asked:
        model, cluster = training.model_of(found), training.cluster_of(found)
        assert len(training.gpus_of(cluster, int(found["gpus"]))) == int(found["gpus"]) <= cluster.n_gpus
        assert model.experts % int(found["ep"]) == 0
        assert training.measured_seconds(found) > 0


def test_small_rows_are_answered_and_steps_grow_with_their_microbatches() -> None:
    found = [training.answer_training(row) for row in ROWS if row["id"].startswith("simumax-deepseek-v2")]
    times = [answer.predicted_s for answer in found]
    assert [answer.use for answer in found] == ["fit", "check", "check"]
    assert None not in times
    assert times == sorted(times)  # type: ignore[type-var]
    assert times[2] / times[1] == pytest.approx(4, rel=0.1)  # type: ignore[operator]


def test_a_rate_and_its_time_are_one_answer() -> None:
    by_time = training.answer_training(row())
    tokens = 4096 * 32
    rate = tokens / (0.3666 * 8)
    by_rate = training.answer_training(row(value=str(rate), unit="tokens/s/GPU"))
    assert by_rate.error == pytest.approx(by_time.error)
    assert by_rate.predicted == pytest.approx(rate * by_time.published_s / by_time.predicted_s)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tp": "", "pp": "", "ep": ""}, "no layout"),
        ({"seq": ""}, "seq: empty"),
        ({"gpu": "tpu"}, "gpu = 'tpu'"),
        ({"pp": "half"}, "pp = 'half': a whole number from 1"),
        ({"gpus": "12"}, "gpus = 12: not a multiple"),
        ({"unit": "parsecs"}, "unit = 'parsecs'"),
        ({"value": ""}, "value = ''"),
        ({"model": "nothing"}, "no such file and no such preset"),
    ],
)
def test_what_cannot_be_asked_says_why(changes: dict[str, str], why: str) -> None:
    answer = training.answer_training(row(**changes))
    assert why in answer.why
    assert answer.predicted is None
    assert answer.error is None


def test_routing_is_exactly_even() -> None:
    model = load_model("deepseek-v3")
    trace, step = training.even_routing(model, dp=4, tokens=4096, sequence=4096)
    chosen = trace.experts_TLK[step.token_T, 0]
    counts = [int((chosen == expert).sum()) for expert in range(model.experts)]
    assert min(counts) == max(counts) == 4 * 4096 * model.choices // model.experts


def domains_of(model: ModelShape) -> tuple[RoutingTrace, NDArray[np.int64]]:
    """Forced routing, and how many of four nodes each token goes to [T]."""
    trace, step = training.forced_routing(model, dp=4, tokens=4096, sequence=4096)
    chosen_TK = trace.experts_TLK[step.token_T, 0].astype(int)
    assert len(set(np.bincount(chosen_TK.ravel(), minlength=model.experts).tolist())) == 1
    visited_T = np.array([len(set(row)) for row in (chosen_TK * 4 // model.experts).tolist()])
    assert all(len(set(row)) == model.choices for row in chosen_TK[:500].tolist())
    return trace, visited_T


def test_forced_routing_is_even_in_its_loads_and_drawn_at_random_otherwise() -> None:
    """Of 128 experts on four nodes 8 drawn at random miss a node with the chance C(96, 8) / C(128, 8)."""
    model = load_model("qwen3-235b-a22b")
    _, visited_T = domains_of(model)
    assert visited_T.mean() == pytest.approx(4 * (1 - comb(96, 8) / comb(128, 8)), rel=0.02)


def test_forced_routing_keeps_to_the_groups_of_the_router() -> None:
    """DeepSeek-V3's choices stand in 4 of 8 groups, two groups on a node: fewer nodes than without groups."""
    model = load_model("deepseek-v3")
    trace, visited_T = domains_of(model)
    groups_T = [len(set(row)) for row in (trace.experts_TLK[:, 0].astype(int) // 32).tolist()]
    assert max(groups_T) == 4
    assert visited_T.mean() < 4 * (1 - comb(192, 8) / comb(256, 8)) - 0.3


def test_ranks_that_share_tokens_launch_their_sums_too() -> None:
    """MLA gathers queries, keys and positions apart, and shared experts are cut as well."""
    grouped, latent = load_model("qwen3-235b-a22b"), load_model("deepseek-v3")
    more = [operations(model, tp=8) - operations(model) for model in (grouped, latent)]
    assert more == [OF_A_SUM * SUMS, OF_A_SUM * (OF_LATENT_SUMS + SUMS)]
    assert operations(latent) > operations(grouped) == OPERATIONS


def test_ratios_are_of_rows_that_differ_in_one_thing(benchmark: Any) -> None:
    made = [
        benchmark.Answer(row=row, measured_s=1.0, predicted_s=1.0, assumed="", cpu_s=0.0)
        for row in ROWS
        if not training.unasked(row)
    ]
    found = [(what, one.row["id"], other.row["id"]) for what, one, other in benchmark.pairs(made)]
    assert len(found) == len(set(found)) >= 8
    for _, one, other in found:
        assert one.replace("-off", "-on") == other or one.replace("-mb1", "-mb4") == other
