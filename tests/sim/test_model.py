"""ModelShape against published models, and against broken configs."""

import json

import pytest

from moecast.errors import MoecastError
from moecast.sim.load_model import list_models, load_model
from moecast.sim.model import ModelShape
from moecast.sim.models import PRESETS


@pytest.mark.parametrize("name", list_models())
def test_a_preset_has_the_published_parameter_counts(name):
    model, preset = load_model(name), PRESETS[name]
    assert model.name == name
    assert model.total_parameters() == pytest.approx(preset.total_parameters, rel=0.01)
    active = model.active_parameters(embedding=preset.active_with_embedding)
    assert active == pytest.approx(preset.active_parameters, rel=0.022)  # published with two digits
    assert preset.source


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mixtral-8x7b", (4096, 14336, 8, 2, 32, 32)),
        ("deepseek-v2-lite", (2048, 1408, 64, 6, 26, 27)),
        ("deepseek-v3", (7168, 2048, 256, 8, 58, 61)),
        ("qwen3-30b-a3b", (2048, 768, 128, 8, 48, 48)),
        ("qwen3-235b-a22b", (4096, 1536, 128, 8, 94, 94)),
        ("olmoe-1b-7b", (2048, 1024, 64, 8, 16, 16)),
        ("gpt-oss-120b", (2880, 2880, 128, 4, 36, 36)),
        ("kimi-k2", (7168, 2048, 384, 8, 60, 61)),
    ],
)
def test_a_preset_has_the_published_shape(name, shape):
    model = load_model(name)
    found = (model.hidden, model.expert_intermediate, model.experts, model.choices, model.layers, model.n_layers)
    assert found == shape


def test_every_listed_model_is_a_preset():
    assert set(list_models()) == set(PRESETS)


def test_deepseek_v3_by_hand():
    model = load_model("deepseek-v3")
    attention = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    assert model.mixer_parameters(0) == attention
    assert model.moe_layer_ids == tuple(range(3, 61))
    assert model.dense_layer_ids == (0, 1, 2)
    assert model.expert_parameters == 3 * 7168 * 2048
    assert model.expert_bytes == 3 * 7168 * 2048 + 4 * 3 * (7168 // 128) * (2048 // 128)
    assert model.kv_bytes_per_token == 2 * 576
    assert model.copy_bytes("fp8") == 7168 + 7168 // 128 * 4 + 16
    assert model.copy_bytes("bf16") == 14336 + 16
    assert model.copy_bytes("nvfp4") == 7168 // 2 + 7168 // 16 + 16
    assert model.dispatch_type == "fp8"


def test_grouped_queries_and_sliding_windows():
    model = load_model("gpt-oss-120b")
    assert (model.attention.kind, model.attention.kv_width) == ("gqa", 2 * 8 * 64)
    assert [model.attention.window_of(layer) for layer in range(4)] == [128, None, 128, None]
    assert (model.weight_type, model.dense_type, model.dispatch_type) == ("mxfp4", "bf16", "bf16")
    assert model.expert_bytes == 3 * 2880 * 2880 * 17 // 32
    assert load_model("olmoe-1b-7b").attention.kind == "mha"
    assert load_model("mixtral-8x7b").attention.window_of(0) is None


@pytest.mark.parametrize(
    ("changes", "ids"),
    [
        ({"decoder_sparse_step": 2}, (1, 3, 5)),
        ({"mlp_only_layers": [0, 5]}, (1, 2, 3, 4)),
        ({"decoder_sparse_step": 3, "mlp_only_layers": [2]}, (5,)),
    ],
)
def test_moe_layers_of_qwen(changes, ids):
    config = {**PRESETS["qwen3-30b-a3b"].config, "num_hidden_layers": 6, **changes}
    model = ModelShape.from_config(config, name="q")
    assert model.moe_layer_ids == ids
    assert model.dense_intermediate == 6144


def test_moe_layers_of_deepseek():
    config = {**PRESETS["deepseek-v2-lite"].config, "num_hidden_layers": 8, "moe_layer_freq": 2}
    assert ModelShape.from_config(config).moe_layer_ids == (2, 4, 6)


@pytest.mark.parametrize("kind", ["deepseek", "moecast-capture"])
def test_deepseek_names_without_latent_attention(kind):
    config = {**PRESETS["deepseek-v2-lite"].config, "model_type": kind}
    for field in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
        del config[field]
    model = ModelShape.from_config(config, name="small")
    assert (model.attention.kind, model.attention.head_dim) == ("mha", 128)
    assert model.moe_layer_ids == tuple(range(1, 27))
    assert model.with_dims(load_model("deepseek-v2-lite")).attention.kind == "mla"


def test_qwen2_has_one_shared_expert_of_its_own_width():
    config = {**PRESETS["qwen3-30b-a3b"].config, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 5632}
    model = ModelShape.from_config(config)
    assert (model.shared_experts, model.shared_intermediate) == (1, 5632)


def test_a_config_is_read_from_a_file_or_its_folder(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    file = folder / "config.json"
    file.write_text(json.dumps(dict(PRESETS["olmoe-1b-7b"].config)))
    expected = load_model("olmoe-1b-7b").with_routing("x", layers=1, experts=1, choices=1)
    for path in (file, folder, str(file)):
        model = load_model(path)
        assert model.name == "my-model"
        assert model.with_routing("x", layers=1, experts=1, choices=1).attention == expected.attention


def test_dims_take_the_widths_and_keep_the_routing():
    routing, dims = load_model("olmoe-1b-7b"), load_model("deepseek-v2-lite")
    model = routing.with_dims(dims)
    assert model.name == "routing of olmoe-1b-7b at the dimensions of deepseek-v2-lite"
    assert (model.layers, model.experts, model.choices) == (16, 64, 8)
    assert model.moe_layer_ids == routing.moe_layer_ids
    assert (model.hidden, model.attention, model.vocab) == (2048, dims.attention, 102400)
    assert model.shared_intermediate == 2816


def test_dims_of_an_alternating_model_keep_alternating():
    deep = load_model("qwen3-235b-a22b").with_dims(load_model("gpt-oss-120b"))
    assert [deep.attention.window_of(layer) for layer in (90, 91, 92, 93)] == [128, None, 128, None]


def test_dense_layers_of_the_routing_need_a_width():
    model = load_model("deepseek-v2-lite").with_dims(load_model("olmoe-1b-7b"))
    assert model.dense_layer_ids == (0,)
    assert model.dense_intermediate == 6 * 1024


def _changed(**changes):
    config = {**PRESETS["deepseek-v3"].config, **changes}
    return {field: value for field, value in config.items() if value != "absent"}


@pytest.mark.parametrize(
    ("config", "field", "rule"),
    [
        (_changed(hidden_size="absent"), "hidden_size", "missing"),
        (_changed(kv_lora_rank="absent"), "kv_lora_rank", "missing"),
        (
            _changed(model_type="absent", first_k_dense_replace="absent", moe_layer_freq="absent"),
            "num_hidden_layers",
            "says nothing of which layers have experts",
        ),
        (
            _changed(model_type="new", moe_intermediate_size="absent", intermediate_size="absent"),
            "moe_intermediate_size",
            "missing",
        ),
        (_changed(model_type=3), "model_type", "must be a string"),
        (_changed(n_routed_experts="256"), "n_routed_experts", "whole number"),
        (_changed(n_routed_experts=True), "n_routed_experts", "whole number"),
        (_changed(num_hidden_layers=0), "num_hidden_layers", "at least 1"),
        (_changed(num_hidden_layers=10**9), "num_hidden_layers", "at most"),
        (_changed(hidden_size=7168.0), "hidden_size", "whole number"),
        (_changed(tie_word_embeddings="no"), "tie_word_embeddings", "true or false"),
        (_changed(num_experts_per_tok=300), "choices", "cannot choose more"),
        (_changed(first_k_dense_replace=61), "moe_layer_freq", "names no MoE layer"),
        (_changed(quantization_config={"quant_method": "hqq"}), "quantization_config.quant_method", "known"),
        (_changed(quantization_config={"quant_method": "awq", "bits": 3}), "quantization_config.bits", "4 or 8"),
        (_changed(quantization_config={"quant_method": "modelopt", "quant_algo": "W1"}), "quant_algo", "one of FP8"),
        (_changed(quantization_config={"quant_method": "compressed-tensors"}), "config_groups", "at least one"),
        (_changed(torch_dtype="int9"), "torch_dtype", "one of bfloat16"),
        (
            _changed(quantization_config={"quant_method": "fp8", "weight_block_size": [64, 64]}),
            "quantization_config.weight_block_size",
            "[128, 128]",
        ),
        ({**PRESETS["qwen3-30b-a3b"].config, "mlp_only_layers": [True]}, "mlp_only_layers", "list of layers"),
        ({**PRESETS["qwen3-30b-a3b"].config, "num_key_value_heads": 5}, "kv_heads", "must divide"),
        ({**PRESETS["gpt-oss-120b"].config, "layer_types": ["full_attention"]}, "layer_types", "36 entries"),
        ({**PRESETS["gpt-oss-120b"].config, "layer_types": ["odd"] * 36}, "layer_types", "not priced"),
    ],
)
def test_a_wrong_config_is_named_in_one_line(tmp_path, config, field, rule):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    with pytest.raises(MoecastError) as caught:
        ModelShape.from_config(file)
    line = str(caught.value)
    assert str(file) in line
    assert field in line
    assert rule in line
    assert "\n" not in line


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '"x"'])
def test_a_file_that_is_no_json_object_is_refused(tmp_path, text):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(MoecastError, match=r"config\.json: not "):
        load_model(file)


def test_an_unknown_name_lists_the_presets(tmp_path):
    with pytest.raises(MoecastError, match="deepseek-v3"):
        load_model("deepseek-v9")
    with pytest.raises(MoecastError, match=r"config\.json: cannot be read"):
        load_model(tmp_path)


def test_sizes_are_checked_for_python_callers():
    model = load_model("olmoe-1b-7b")
    with pytest.raises(ValueError, match="element type 'int3'"):
        model.copy_bytes("int3")
    with pytest.raises(ValueError, match="choices = 9"):
        model.with_routing("x", layers=2, experts=8, choices=9)


# The folder of a checkpoint as modelopt 0.2 exports it, newer exports, and int4 of Kimi-K2-Thinking's kind.
QUANTISED = {
    "beside": (None, {"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16}}),
    "modelopt": (
        {
            "quant_method": "modelopt",
            "quant_algo": "NVFP4",
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}},
        },
        None,
    ),
    "compressed-tensors": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 4, "type": "int", "group_size": 32, "symmetric": True},
                }
            },
        },
        None,
    ),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_four_bit_experts_take_four_and_a_half_bits(tmp_path, kind):
    """227.1 B weights of Qwen3-235B's experts are 127.7 GB, wherever the checkpoint says how it is quantised."""
    inside, beside = QUANTISED[kind]
    config = dict(PRESETS["qwen3-235b-a22b"].config) | ({} if inside is None else {"quantization_config": inside})
    (tmp_path / "config.json").write_text(json.dumps(config))
    if beside is not None:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    for path in (tmp_path, tmp_path / "config.json"):
        model = load_model(path)
        assert model.layers * model.experts * model.expert_bytes == pytest.approx(127.7e9, rel=1e-3)
    assert model.kv_type == ("fp8" if beside else "bf16")


def test_what_is_left_out_decides_the_other_matrices():
    quantised = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    for ignored, dense in (
        ([], "nvfp4"),
        (["lm_head", "model.layers.*.self_attn*"], "bf16"),
        (["re:.*self_attn.*"], "bf16"),
    ):
        config = dict(PRESETS["qwen3-30b-a3b"].config) | {"quantization_config": quantised | {"ignore": ignored}}
        model = ModelShape.from_config(config, name="x")
        assert (model.weight_type, model.dense_type) == ("nvfp4", dense)
    experts = quantised | {"ignore": ["*.mlp.experts.*"]}
    config = dict(PRESETS["qwen3-30b-a3b"].config) | {"quantization_config": experts}
    assert ModelShape.from_config(config, name="x").weight_type == "bf16"


def test_layers_that_were_recorded_keep_their_own_attention():
    model = load_model("gpt-oss-120b").of_layers((1, 2, 8))
    assert model.name == "3 of the 36 MoE layers of gpt-oss-120b"
    assert [model.attention.window_of(layer) for layer in range(3)] == [None, 128, 128]
    with pytest.raises(ValueError, match="layer 0 is no MoE layer"):
        load_model("deepseek-v3").of_layers((0, 5))
