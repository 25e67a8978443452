"""A comparison's file: there and back, and what is wrong with a bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from moecast.errors import MoecastError
from moecast.report.comparison import Comparison, Entry, read_comparison, write_comparison
from moecast.sim import Prediction
from tests.sim.test_prediction import predictions


@settings(max_examples=5, deadline=None)
@given(prediction=predictions())
def test_there_and_back(tmp_path_factory: pytest.TempPathFactory, prediction: Prediction) -> None:
    path = tmp_path_factory.getbasetemp() / "comparison.json"
    entry = Entry(plan="local-search", prediction=prediction, placement={"bound_s": 1.0, "note": "x"})
    comparison = Comparison(title="t", entries=(entry,), notes=("n",), trace={"load": [[1, 2]], "tokens": 3})
    write_comparison(comparison, path)
    assert read_comparison([path]) == comparison


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"title": 3}, "title: must be text"),
        ({"notes": None}, "notes: must be texts"),
        ({"trace": [1]}, "trace: must be an object"),
        ({"trace": {"load": 7}}, "trace.load: must be lists of numbers"),
        ({"trace": {"load": [[1], [1, 2]]}}, "trace.load: must be lists of numbers"),
        ({"entries": {"a": 1}}, "entries: must be a list"),
        ({"entries": [1]}, "entries: each needs 'plan' and 'prediction'"),
        ({"entries": []}, "holds no prediction"),
        ({"placement": "none"}, "entries.placement = 'none': must be an object"),
        ({"placement": {"gap": "small"}}, "entries.placement.gap = 'small': must be a number"),
    ],
)
@settings(max_examples=1, deadline=None)
@given(prediction=predictions())
def test_wrong_values_are_named(
    tmp_path_factory: pytest.TempPathFactory, prediction: Prediction, change: dict[str, Any], words: str
) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "bad.json"
    value = Comparison(title="t", entries=(Entry(plan="local-search", prediction=prediction),)).to_json()
    if "placement" in change:
        value["entries"][0] |= change
    else:
        value |= change
    path.write_text(json.dumps(value))
    with pytest.raises(MoecastError) as caught:
        read_comparison([path])
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
