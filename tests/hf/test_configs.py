"""The config.json that transformers writes for a family is read by the simulator, where it knows the family."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moecast.errors import MoecastError
from moecast.sim import ModelShape
from moecast.sim.configs.moe_sizes import MoeSizes
from tests.hf.families import FAMILIES, Family

# What keeps a family from being priced, by the field that says so.
NOT_PRICED = {"zaya": "layer_types = 'hybrid'"}
# Two hidden layers stand for each of its own, which has two attentions and two MLPs.
DOUBLED = {"longcat-flash"}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_saved_config_gives_the_layers_and_experts_that_are_captured(family: Family, tmp_path: Path) -> None:
    model = family.build()
    model.config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    if family.name in NOT_PRICED:
        with pytest.raises(MoecastError, match=NOT_PRICED[family.name]):
            ModelShape.from_config(file)
        return
    shape = ModelShape.from_config(file)
    stride = 2 if family.name in DOUBLED else 1
    assert shape.moe_layer_ids == tuple(stride * layer for layer in family.layer_ids)
    assert (shape.experts, shape.choices) == (family.experts, family.choices)
    assert shape.hidden == model.get_input_embeddings().weight.shape[1]


# Weights that are not counted: gates of one output per shared expert, and gpt-oss's biases of experts.
NOT_COUNTED = (
    "shared_expert_gate",
    "experts.gate_up_proj_bias",
    "experts.down_proj_bias",
    "e_score",
    "sinks",
)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_parameters_are_those_of_transformers_own_model(family: Family, tmp_path: Path) -> None:
    """An independent count: every matrix of the model that transformers builds from the same config."""
    if family.name in NOT_PRICED | dict.fromkeys(DOUBLED):
        pytest.skip("not priced, or allocated with experts that compute nothing")
    model = family.build()
    model.config.save_pretrained(tmp_path)
    shape = ModelShape.from_config(tmp_path / "config.json")
    counted = {
        name: weights.numel()
        for name, weights in model.named_parameters()
        if weights.dim() >= 2 and not re.search("vision|visual|audio|mtp|moe_statics", name)
    }
    matrices = sum(count for name, count in counted.items() if not any(part in name for part in NOT_COUNTED))
    norms = (2 * shape.n_layers + 1) * shape.hidden
    assert shape.total_parameters() - norms == matrices


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_an_import_needs_no_more_than_the_moe_layers(family: Family) -> None:
    raw = family.build().config.to_dict()
    sizes = MoeSizes.from_config(raw, file="config.json", name=family.name)
    assert (sizes.moe_layer_ids, sizes.experts, sizes.choices) == (family.layer_ids, family.experts, family.choices)


# What other makers' config.json say: only the fields that count, by the names and with the meaning of their own code.
PUBLISHED = {
    "nemotron-h": (
        {
            "num_hidden_layers": 7,
            "hybrid_override_pattern": "MEM*E-E",
            "n_routed_experts": 128,
            "num_experts_per_tok": 6,
        },
        (1, 4, 6),
        (128, 6),
    ),
    "dbrx": (
        {"n_layers": 3, "ffn_config": {"moe_num_experts": 16, "moe_top_k": 4, "ffn_hidden_size": 10752}},
        (0, 1, 2),
        (16, 4),
    ),
    "jetmoe": ({"num_hidden_layers": 2, "num_local_experts": 8, "num_experts_per_tok": 2}, (0, 1), (8, 2)),
    "grok-1": ({"num_hidden_layers": 2, "num_experts": 8, "num_experts_per_tok": 2}, (0, 1), (8, 2)),
    "arctic": (
        {"num_hidden_layers": 5, "moe_layer_frequency": 2, "num_local_experts": 128, "num_experts_per_tok": 2},
        (1, 3),
        (128, 2),
    ),
    "smallthinker": (
        {
            "num_hidden_layers": 3,
            "moe_layer_layout": [0, 1, 1],
            "moe_num_primary_experts": 64,
            "moe_num_active_primary_experts": 6,
        },
        (1, 2),
        (64, 6),
    ),
    "hunyuan-remote": (
        {"num_hidden_layers": 3, "moe_layer_num_skipped": 1, "num_experts": 64, "moe_topk": [8, 8, 8]},
        (1, 2),
        (64, 8),
    ),
    "mask": (
        {"num_hidden_layers": 4, "moe_layer_freq": [0, 0, 1, 1], "n_routed_experts": 256, "num_experts_per_tok": 8},
        (2, 3),
        (256, 8),
    ),
}


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_an_import_reads_what_makers_publish(model_type: str) -> None:
    raw, layer_ids, (experts, choices) = PUBLISHED[model_type]
    sizes = MoeSizes.from_config({"model_type": model_type, **raw}, file="config.json", name=model_type)
    assert (sizes.moe_layer_ids, sizes.experts, sizes.choices) == (layer_ids, experts, choices)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"num_hidden_layers": 2, "hybrid_override_pattern": "MEM"}, "2 entries"),
        ({"num_hidden_layers": 2, "moe_layer_freq": [1]}, "2 entries"),
        ({"num_hidden_layers": 2, "hybrid_override_pattern": "M*"}, "names no MoE layer"),
        ({"num_hidden_layers": 2, "moe_layer_frequency": 0}, "at least 1"),
        ({"layers_block_type": ["moe"] * 5000}, "at most 4096"),
        ({"layers_block_type": []}, "no MoE layer"),
        ({"n_layers": 2, "ffn_config": [1]}, "missing"),
    ],
)
def test_a_config_that_contradicts_itself_is_one_line(raw: dict[str, object], said: str) -> None:
    with pytest.raises(MoecastError, match=said):
        MoeSizes.from_config({"model_type": "other", **raw}, file="config.json", name="other")
