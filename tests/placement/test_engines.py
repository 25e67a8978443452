"""Engines' files: the same plan there and back, laid out as the engines want it, and bad ones in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.placement.engines import ENGINES, engine_path, read_any, write_engine_file
from moecast.sim import ModelShape, Plan, load_model, write_plan


def small_model(layers: int, experts: int, dense_first: int) -> ModelShape:
    shape = load_model("deepseek-v2-lite")
    ids = tuple(range(dense_first, dense_first + layers))
    return shape.with_routing("small", layers=layers, experts=experts, choices=1, layer_ids=ids)


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, ModelShape]:
    """A legal plan without empty slots, and its model."""
    ep, slots, layers = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    experts = draw(st.integers(1, ep * slots))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    fill = [np.concatenate([np.arange(experts), rng.integers(0, experts, ep * slots - experts)]) for _ in range(layers)]
    table = np.stack([rng.permutation(row) for row in fill]).astype(np.int32).reshape(1, layers, ep, slots)
    model = small_model(layers, experts, draw(st.integers(0, 2)))
    plan = Plan(
        experts=experts, choices=1, layer_ids=model.moe_layer_ids, slots_DLGP=table, gpu_of_rank=tuple(range(ep))
    )
    return plan, model


@pytest.mark.parametrize("engine", [engine.name for engine in ENGINES])
@given(case=plans())
def test_there_and_back(tmp_path_factory: pytest.TempPathFactory, engine: str, case: tuple[Plan, ModelShape]) -> None:
    """Invariant 10."""
    plan, model = case
    path = engine_path(tmp_path_factory.mktemp("engine") / "plan.json", engine)
    write_engine_file(plan, path, engine=engine, model=model)
    back = read_any(path, model=model, ep=plan.ep)
    before, after = plan.to_json(), back.to_json()
    assert before | {"made_by": None} == after | {"made_by": None}


def test_moecasts_own_plan_is_read_too(tmp_path: Path) -> None:
    plan = Plan.contiguous(layers=2, experts=8, choices=2, ep=4)
    write_plan(plan, tmp_path / "plan.json")
    assert read_any(tmp_path / "plan.json", model=small_model(2, 8, 0), ep=4).to_json() == plan.to_json()


def test_sglang_wants_a_row_for_every_hidden_layer(tmp_path: Path) -> None:
    model = small_model(2, 4, 1)  # one dense layer first
    plan = Plan.contiguous(layers=2, experts=4, choices=1, ep=2, layer_ids=model.moe_layer_ids)
    write_engine_file(plan, tmp_path / "p.json", engine="sglang", model=model)
    assert json.loads((tmp_path / "p.json").read_text()) == {"physical_to_logical_map": [[0, 1, 2, 3]] * 3}


def test_trtllm_maps_layer_ids(tmp_path: Path) -> None:
    model = small_model(2, 4, 1)
    plan = Plan.contiguous(layers=2, experts=4, choices=1, ep=2, layer_ids=model.moe_layer_ids)
    write_engine_file(plan, tmp_path / "p.yaml", engine="trtllm", model=model)
    assert yaml.safe_load((tmp_path / "p.yaml").read_text()) == {
        "num_slots": 4,
        "initial_global_assignments": {1: [0, 1, 2, 3], 2: [0, 1, 2, 3]},
        "layer_updates_per_iter": 0,
    }


def test_what_an_engine_cannot_hold_is_refused_and_not_written(tmp_path: Path) -> None:
    model = small_model(2, 4, 0)
    empty = Plan.contiguous(layers=2, experts=4, choices=1, ep=2, slots_per_rank=3)
    for engine in ENGINES:
        path = engine_path(tmp_path / "plan.json", engine.name)
        with pytest.raises(MoecastError, match="leaves 4"):
            write_engine_file(empty, path, engine=engine.name, model=model)
        assert not path.exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"physical_to_logical_map": [[0, 1, 2, 3]]}, "2 hidden layers"),
        ({"physical_to_logical_map": [[0, 1, 2, 3], [0, 1, 2]]}, "3 slots"),
        ({"physical_to_logical_map": [[0, 1, 2, 3], [0, 1, 2, 9]]}, "experts 0 to 3"),
        ({"physical_to_logical_map": [[0, 1, 2, 3], [0, 1, 2, 2]]}, "misses expert 3"),
        ({"physical_to_logical_map": [[0, 1, 2, 3], [0, 1, 2, "3"]]}, "whole numbers"),
        ({"physical_to_logical_map": "all"}, "2 hidden layers"),
        ({"physical_to_logical_map": [[0, 1, 2, 3, 0]] * 2}, "divide"),
        ({"initial_global_assignments": {"0": [0, 1, 2, 3]}, "num_slots": 4}, r"\[1\]"),
        ({"initial_global_assignments": {"0": [0, 1, 2, 3], "1": [3, 2, 1, 0]}, "num_slots": 6}, "num_slots"),
        ({"initial_global_assignments": [1, 2]}, "layer ids"),
        ({"something": 1}, "not a moecast plan"),
        ([1, 2], "one object"),
    ],
)
def test_bad_files(tmp_path: Path, value: Any, words: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(value))
    with pytest.raises(MoecastError, match=words) as caught:
        read_any(path, model=small_model(2, 4, 0), ep=2)
    assert "bad.json" in str(caught.value)
    assert "\n" not in str(caught.value)
