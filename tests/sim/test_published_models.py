"""Published models by what their config.json says: total and active parameters against what their makers state."""

from __future__ import annotations

import pytest

from moecast.errors import MoecastError
from moecast.sim import ModelShape
from moecast.sim.attention_shape import AttentionShape
from tests.sim.published_configs import MODELS

B = 1e9
# A token meets 18.6 to 31.3 B of LongCat-Flash, 27 on average: some of its choices are of no expert.
AT_MOST = {"longcat-flash"}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_as_published(name: str) -> None:
    total, active, config = MODELS[name]
    shape = ModelShape.from_config(config, name=name)
    assert shape.total_parameters() / B == pytest.approx(total, rel=0.025)
    if name in AT_MOST:
        assert shape.active_parameters(embedding=False) / B == pytest.approx(31.3, rel=0.01)
        return
    # Makers count the embedding or do not, and round: "3 B" is anything up to 3.6.
    met = (shape.active_parameters(embedding=False) / B, shape.active_parameters() / B)
    assert met[0] * 0.93 <= active * 1.2
    assert met[1] >= active * 0.9


def test_a_field_that_the_class_does_not_define_is_no_alias() -> None:
    """Mixtral's experts are as wide as `intermediate_size` says, whatever else stands in the file."""
    _, _, config = MODELS["mixtral-8x22b"]
    stray = {"moe_intermediate_size": 7, "n_shared_experts": 3, "first_k_dense_replace": 9, "kv_lora_rank": 4}
    assert ModelShape.from_config(config | stray, name="x") == ModelShape.from_config(config, name="x")


def test_linear_and_sliding_layers_are_told_apart() -> None:
    shape = ModelShape.from_config(MODELS["qwen3-next-80b"][2], name="x")
    assert [shape.kv_bytes_of(layer) for layer in range(4)] == [0, 0, 0, 2 * 2 * 2 * 256]
    state = 4 * (32 * 128 * 128 + 3 * (2 * 2048 + 4096))
    assert [shape.state_bytes_of(layer) for layer in range(4)] == [state, state, state, 0]
    flash = ModelShape.from_config(MODELS["mimo-v2-flash"][2], name="x")
    assert flash.kv_bytes_of(0) == 2 * 4 * (192 + 128)
    assert flash.kv_bytes_of(1) == 2 * 8 * (192 + 128)
    nano = ModelShape.from_config(MODELS["nemotron-3-nano-30b"][2], name="x")
    assert nano.mlp_matrices == 2
    assert nano.mixer_of(1) is None  # a layer of experts only
    sparse = ModelShape.from_config(MODELS["deepseek-v3.2"][2], name="x")
    assert sparse.attention.keys_read_of(5) == 2048


def test_keys_and_values_are_those_that_layers_keep() -> None:
    """Closed forms of what one token adds to the cache of each layer, bf16."""
    pangu = ModelShape.from_config(MODELS["openpangu-ultra-moe"][2], name="x")
    assert (pangu.attention.kind, pangu.kv_bytes_of(0)) == ("mla", 2 * (512 + 64))
    large = ModelShape.from_config(MODELS["hunyuan-large"][2], name="x")  # every other layer reads its neighbour's
    assert [large.kv_bytes_of(layer) for layer in range(4)] == [2 * 2 * 8 * 80, 0, 2 * 2 * 8 * 80, 0]
    assert large.mixer_parameters(0) - large.mixer_parameters(1) == 2 * 6400 * 8 * 80
    alone = ModelShape.from_config(MODELS["hunyuan-large"][2] | {"use_cla": False}, name="x")
    assert sum(map(alone.kv_bytes_of, range(64))) == 2 * sum(map(large.kv_bytes_of, range(64)))


WINDOWS = {
    "smallthinker-21b-a3b": [None, 4096, 4096, 4096],
    "k-exaone-236b-a23b": [128, 128, 128, None],
    "step-3.5-flash": [None, 512, 512, 512],
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_on_the_layers_that_the_config_lists(name: str) -> None:
    shape = ModelShape.from_config(MODELS[name][2], name=name)
    mixers = [shape.mixer_of(layer) for layer in range(shape.n_layers)]
    assert all(isinstance(mixer, AttentionShape) for mixer in mixers)
    windows = [mixer.window_of(layer) for layer, mixer in enumerate(mixers) if isinstance(mixer, AttentionShape)]
    assert windows == (WINDOWS[name] * shape.n_layers)[: shape.n_layers]


def test_sliding_layers_have_heads_of_their_own() -> None:
    shape = ModelShape.from_config(MODELS["step-3.5-flash"][2], name="x")
    full, sliding = shape.mixer_parameters(0), shape.mixer_parameters(1)
    assert full == 4096 * (2 * 64 * 128 + 2 * 8 * 128 + 64)
    assert sliding == 4096 * (2 * 96 * 128 + 2 * 8 * 128 + 96)


def test_an_mlp_runs_beside_grok_2s_experts() -> None:
    shape = ModelShape.from_config(MODELS["grok-2"][2], name="x")
    assert (shape.layers, shape.shared_intermediate, shape.expert_intermediate) == (64, 32768, 16384)


def test_a_second_set_of_experts_is_refused() -> None:
    """ERNIE-4.5-VL's experts of pictures are a quarter of its weights."""
    config = MODELS["ernie-4.5-21b-a3b"][2] | {
        "model_type": "ernie4_5_vl_moe_text",
        "moe_intermediate_size": [1536, 512],
    }
    with pytest.raises(MoecastError, match=r"moe_intermediate_size = \[1536, 512\]: experts of pictures"):
        ModelShape.from_config(config, name="ernie-vl")


def test_attention_made_of_experts_is_refused() -> None:
    config = {"model_type": "jetmoe", "num_hidden_layers": 24, "num_local_experts": 8, "num_experts_per_tok": 2}
    with pytest.raises(MoecastError, match="model_type = 'jetmoe': experts of queries and outputs"):
        ModelShape.from_config(config, name="x")


def test_compressed_keys_are_kept_and_read_as_deepseek_v4_does() -> None:
    """Closed forms: a window of 128 vectors of 512, and one vector for 4 tokens (512 of them read) or for 128 (all)."""
    shape = ModelShape.from_config(MODELS["deepseek-v4-flash"][2], name="x")
    mixers = [shape.mixer_of(layer) for layer in range(4)]
    slides, few, most = mixers[0], mixers[2], mixers[3]
    assert isinstance(slides, AttentionShape)
    assert isinstance(few, AttentionShape)
    assert isinstance(most, AttentionShape)
    assert slides.reads_of(0) == ((128, 1),)
    assert few.reads_of(2) == ((128, 1), (512 * 4, 4))
    assert most.reads_of(3) == ((128, 1), (None, 128))
    assert [shape.kv_bytes_of(layer) for layer in range(4)] == [2 * 512, 2 * 512, 2 * (512 + 128) // 4, 2 * 512 // 128]
    assert few.keeps_of(2) == ((128, 1, 512), (None, 4, 512 + 128))
    base = 1024 * (4096 + 64 * 512) + 4096 * 512 + 64 * 512 * 1024 + 8 * 1024 * 4096
    assert slides.parameters(4096) == base
    assert most.parameters(4096) == base + 512 * (2 * 4096 + 128)
    index = 1024 * 64 * 128 + 4096 * (4 * 128 + 64) + 4 * 256
    assert few.parameters(4096) == base + 1024 * (2 * 4096 + 4) + index


UNREAD = ["cross_layer_share_factor", "kv_latent_lora_dim", "attn_layout", "kv_compress_rate"]
UNREAD += ["big_expert_intermediate_size", "experts_per_group", "zero_expert_num", "ngram_vocab_size_ratio"]


@pytest.mark.parametrize("name", UNREAD)
def test_what_an_unknown_class_says_of_its_attention_or_experts_is_not_passed_over(name: str) -> None:
    """The next openPangu, Hunyuan, GroveMoE or LongCat is refused by the field, not read as if it were not there."""
    config = MODELS["pangu-pro-moe"][2] | {"model_type": "next", "first_k_dense_replace": 0}
    ModelShape.from_config(config | {name: None}, name="x")
    with pytest.raises(MoecastError, match=f"{name} = 2: what this class means by it is not known"):
        ModelShape.from_config(config | {name: 2}, name="x")
    known = MODELS["mixtral-8x22b"][2] | {name: 2}  # a class that is known reads no such field
    assert ModelShape.from_config(known, name="x").attention.kind == "gqa"
