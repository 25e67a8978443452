"""An independent count: the parameters of the model that transformers builds of a config, on the meta device."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="transformers' classes need torch")
# The version that the table of fields is made from; defaults of classes differ between versions.
transformers = pytest.importorskip("transformers", minversion="5.24", reason="the classes of transformers 5.24")

from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402
from transformers.models.step3p7.modeling_step3p7 import Step3p7TextModel  # noqa: E402

from moecast.sim import ModelShape  # noqa: E402
from moecast.sim.configs.fields import FIELDS_OF  # noqa: E402
from moecast.sim.models import PRESETS  # noqa: E402
from tests.sim.published_configs import MODELS  # noqa: E402

CONFIGS: dict[str, dict[str, Any]] = {
    **{name: config for name, (_, _, config) in MODELS.items()},
    **{name: dict(preset.config) for name, preset in PRESETS.items()},
}
# Weights that are not counted: biases of experts and of routers, and what is one row (a gate of shared experts).
NOT_COUNTED = "e_score|experts.*_bias$|moe_statics|visual|vision|mtp"
APART = {"longcat-flash": "experts that compute nothing are allocated"}
# What the classes read only in another form, or want besides.
AS_THE_CLASS_READS_IT = {
    "k-exaone-236b-a23b": {"sliding_window_pattern": 4},
    "dbrx": {"attn_config": {"kv_n_heads": 8, "rope_theta": 5e5, "clip_qkv": 8}},
}


def text_config(raw: dict[str, Any]) -> dict[str, Any]:
    inner = raw.get("text_config", raw)
    return {field: value for field, value in copy.deepcopy(inner).items() if field != "quantization_config"}


def built(model_type: str, raw: dict[str, Any]) -> Any:
    """The model of the class, without memory; with an LM head where it has one."""
    config = CONFIG_MAPPING[model_type](**{field: value for field, value in raw.items() if field != "model_type"})
    with torch.device("meta"):
        for auto in (transformers.AutoModelForCausalLM, transformers.AutoModel):
            try:
                return auto.from_config(config)
            except ValueError as error:
                if "Unrecognized configuration class" not in str(error):
                    raise
        return Step3p7TextModel(config)  # the one that no auto class knows by its text alone


def matrices(model: Any) -> int:
    return sum(
        weights.numel()
        for name, weights in model.named_parameters()
        if weights.squeeze().dim() >= 2 and not re.search(NOT_COUNTED, name)
    )


def counted(shape: ModelShape, model: Any) -> int:
    """The same of a shape: norms left out, and the LM head where the class has none."""
    heads = sum("lm_head" in name for name, _ in model.named_modules())
    norms = (2 * shape.n_layers + 1) * shape.hidden
    return shape.total_parameters() - norms - (0 if heads or shape.tied_embedding else shape.vocab * shape.hidden)


KNOWN = [name for name, raw in CONFIGS.items() if text_config(raw)["model_type"] in {*CONFIG_MAPPING} & {*FIELDS_OF}]


@pytest.mark.parametrize("name", KNOWN)
def test_shipped_configs_have_the_parameters_of_their_class(name: str) -> None:
    raw = text_config(CONFIGS[name])
    if name in APART:
        pytest.skip(APART[name])
    shape = ModelShape.from_config(raw, name=name)
    model = built(raw["model_type"], raw | AS_THE_CLASS_READS_IT.get(name, {}))
    off = 2e-4 if raw["model_type"] == "deepseek_v4" else 0  # hyper-connections
    assert counted(shape, model) == pytest.approx(matrices(model), rel=off, abs=0)


# Classes by their own defaults, and how far a count may be off: hyper-connections, AXK2's gated norms and wide gates,
# position biases of pooled keys and latent vectors without rotary keys are left out.
DEFAULTS = {
    "afmoe": 0, "aria_text": 0, "axk1": 0, "axk2": 0.007, "bailing_hybrid": 0, "beam": 0, "cohere2_moe": 0,
    "deepseek_v3": 0, "deepseek_v32": 0, "deepseek_v4": 2e-4, "dots3_note_text": 0, "exaone_moe": 0,
    "flex_olmo": 0, "flint": 0,
    "glm4_moe": 0, "glm4_moe_lite": 0, "glm4v_moe_text": 0, "glm5_next_text": 2e-4, "glm_moe_dsa": 0, "granitemoe": 0,
    "granitemoe_swa": 0, "granitemoehybrid": 0, "granitemoeshared": 0, "hy_v3": 0, "hy_v4": 2e-4, "hy_v4_vl_text": 1e-4,
    "jamba": 0, "kolibri1": 0, "laguna": 0, "lara_mini": 0, "llama4_text": 0, "mellum": 0, "mimo_v2_flash": 0,
    "minimax": 0, "minimax_m2": 0, "minimax_m3_vl_text": 0, "mistral4": 0, "mistral_large4_text": 1e-4, "mixtral": 0,
    "muse_spark_text": 0, "nemotron_h": 0, "olmoe": 0, "phimoe": 0, "qwen2_moe": 0, "qwen3_5_moe_text": 0,
    "qwen3_moe": 0, "qwen3_next": 0, "qwen3_vl_moe_text": 0, "sarvam_mla": 0, "sarvam_moe": 0, "solar_open": 0,
    "step3p5": 0,
}  # fmt: skip


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_default_configs_have_the_parameters_of_their_class(model_type: str) -> None:
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    config = CONFIG_MAPPING[model_type]()
    raw = json.loads(config.to_json_string(use_diff=False))
    shape, model = ModelShape.from_config(raw, name=model_type), built(model_type, {})
    assert counted(shape, model) == pytest.approx(matrices(model), rel=DEFAULTS[model_type], abs=0)


def test_keys_that_layers_share_are_not_allocated() -> None:
    """Gemma-4's last layers read the keys and values of layers before them; those that see all keys have no values."""
    raw = text_config(CONFIGS["gemma-4-26b-a4b"]) | {"num_kv_shared_layers": 8, "hidden_size_per_layer_input": 0}
    shape, model = ModelShape.from_config(raw, name="x"), built("gemma4_text", raw)
    assert counted(shape, model) == matrices(model)
    assert [shape.kv_bytes_of(layer) > 0 for layer in range(30)] == [True] * 22 + [False] * 8
