"""The config.json that transformers writes for a family is read by the simulator, where it knows the family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moecast.errors import MoecastError
from moecast.sim import ModelShape
from moecast.sim.moe_sizes import MoeSizes
from tests.hf.families import FAMILIES, Family

KNOWN = {
    "mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "deepseek-v2", "deepseek-v2-groups", "deepseek-v3", "gpt-oss",
    "glm-4-moe", "granite-moe", "phimoe", "minimax-m2",
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_saved_config_gives_the_layers_and_experts_that_are_captured(family: Family, tmp_path: Path) -> None:
    model = family.build()
    model.config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    if family.name not in KNOWN:
        with pytest.raises(MoecastError, match="model_type"):
            ModelShape.from_config(file)
        return
    shape = ModelShape.from_config(file)
    assert (shape.moe_layer_ids, shape.experts, shape.choices) == (family.layer_ids, family.experts, family.choices)
    assert shape.hidden == json.loads(file.read_text())["hidden_size"]


# Their configs say it in words of their own, or not at all.
UNREADABLE = {"dbrx", "nemotron-h"}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_an_import_needs_no_more_than_the_moe_layers(family: Family) -> None:
    raw = family.build().config.to_dict()
    if family.name in UNREADABLE:
        with pytest.raises(MoecastError, match="missing"):
            MoeSizes.from_config(raw, file="config.json", name=family.name)
        return
    sizes = MoeSizes.from_config(raw, file="config.json", name=family.name)
    assert (sizes.moe_layer_ids, sizes.experts, sizes.choices) == (family.layer_ids, family.experts, family.choices)
