"""No config, whatever stands in it, makes more than one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from moecast.errors import MoecastError
from moecast.sim import ModelShape
from tests.sim.mutated_configs import SEEDS, mutated_configs, read_as_far_as_it_goes


@pytest.mark.parametrize("name", SEEDS)
def test_what_is_mutated_is_read_as_it_stands(name: str) -> None:
    assert read_as_far_as_it_goes(SEEDS[name]) is None


@settings(max_examples=400, deadline=None)
@given(mutated_configs())
def test_a_mutated_config_is_read_or_refused_in_one_line(config: dict[str, Any]) -> None:
    read_as_far_as_it_goes(config)


BAD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    10**30,
    10**5000,
    1.5,
    float("nan"),
    "",
    "x",
    "re:(((",
    [],
    [None],
    [[1]],
    [{}],
    {},
    {"quant_method": []},
    {"quant_method": "fp8", "ignore": 3},
    {"full_attn_layers": [{}]},
)


@pytest.mark.parametrize("name", ["nemotron-3-nano-30b", "gemma-4-26b-a4b", "compressed-tensors", "kimi-linear-48b"])
def test_each_field_replaced_by_each_bad_value(name: str) -> None:
    """All single changes of a config: an exhaustive part of what the property above draws from."""

    def changed(value: Any) -> list[Any]:
        if not isinstance(value, Mapping):
            return []
        fields = dict(value)
        direct = [{**fields, field: bad} for field in fields for bad in BAD]
        return direct + [{**fields, field: inner} for field in fields for inner in changed(fields[field])]

    for config in changed(SEEDS[name]):
        read_as_far_as_it_goes(config)


def test_a_number_of_thousands_of_digits_is_one_line() -> None:
    with pytest.raises(MoecastError, match=r"hidden_size = \(int\): must be a whole number") as error:
        ModelShape.from_config(SEEDS["kimi-k2"] | {"hidden_size": 10**5000}, name="x")
    assert "\n" not in str(error.value)


def test_the_line_names_the_file_beside_the_config(tmp_path: Path) -> None:
    plain = {field: value for field, value in SEEDS["kimi-k2"].items() if field != "quantization_config"}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "W2"}}))
    with pytest.raises(MoecastError, match=r"hf_quant_config\.json: quantization\.quant_algo = 'W2'"):
        ModelShape.from_config(tmp_path)
