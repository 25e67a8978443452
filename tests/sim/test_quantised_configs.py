"""How quantised checkpoints say which of their modules are quantised, and how: every part keeps its own type."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import ModelShape
from moecast.sim.configs.patterns import Names
from tests.sim.published_configs import FORMS, MODELS

BASE = MODELS["kimi-k2"][2]  # 1 dense layer, 60 with 384 experts and a shared one, latent attention


def types(form: dict[str, Any], **more: Any) -> tuple[str, str, str]:
    """Types of experts, of dense layers and shared experts, and of attention."""
    shape = ModelShape.from_config({**BASE, **more, "quantization_config": form}, name="x")
    return shape.weight_type, shape.dense_type, shape.mixer_type


EXPECTED = {
    "fp8": ("fp8", "fp8", "fp8"),
    "mxfp4": ("mxfp4", "bf16", "bf16"),
    "awq": ("int4", "int4", "int4"),
    "gptq": ("int4", "int4", "bf16"),
    "auto-round": ("int4", "int4", "int4"),  # one layer's queries are no tenth of attention
    "compressed-tensors": ("int4", "bf16", "bf16"),
    "modelopt": ("nvfp4", "nvfp4", "bf16"),
    "fp8 and fp4": ("mxfp4", "fp8", "fp8"),  # DeepSeek-V4's
    "quark": ("mxfp4", "mxfp4", "bf16"),
}


@pytest.mark.parametrize("method", FORMS)
def test_every_method_says_what_it_leaves_out(method: str) -> None:
    assert types(FORMS[method]) == EXPECTED[method]


LAYERS = range(61)
PROJECTIONS = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
CASES: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    "quark, every module by its name": (
        FORMS["quark"]
        | {"exclude": [f"model.layers.{i}.self_attn.{name}" for i in LAYERS for name in PROJECTIONS] + ["lm_head"]},
        ("mxfp4", "mxfp4", "bf16"),
    ),
    "quark, attention in a type of its own": (
        FORMS["quark"] | {"exclude": [], "layer_quant_config": {"*self_attn*": {"weight": {"dtype": "fp8_e4m3"}}}},
        ("mxfp4", "mxfp4", "fp8"),
    ),
    "gptq, numbers of their own": (
        FORMS["gptq"] | {"dynamic": {"-:.*self_attn.*": {}, r"+:.*\.(shared_experts|mlp)\.[a-z]+_proj": {"bits": 8}}},
        ("int4", "int8", "bf16"),
    ),
    "gptq, only the experts": (
        FORMS["gptq"] | {"dynamic": None, "modules_in_block_to_quantize": [["mlp.experts"]]},
        ("int4", "bf16", "bf16"),
    ),
    "compressed-tensors, a digit class and an end": (
        FORMS["compressed-tensors"] | {"ignore": [r"re:model\.layers\.[0-9]+\.self_attn\.\w+$", "lm_head"]},
        ("int4", "int4", "bf16"),
    ),
    "compressed-tensors, two groups": (
        FORMS["compressed-tensors"]
        | {
            "ignore": ["lm_head"],
            "config_groups": {
                "experts": {"targets": ["re:.*experts.*_proj$"], "weights": {"num_bits": 4, "type": "int"}},
                "rest": {"targets": [r"re:.*self_attn\..*"], "weights": {"num_bits": 8, "type": "float"}},
            },
        },
        ("int4", "int4", "fp8"),  # shared experts are `shared_experts`; the dense layer is a sixtieth
    ),
    "auto-round, all attention at 16 bits": (
        FORMS["auto-round"]
        | {"extra_config": {f"model.layers.{i}.self_attn.{n}": {"bits": 16} for i in LAYERS for n in PROJECTIONS}},
        ("int4", "int4", "bf16"),
    ),
    "auto-round, an expression": (
        FORMS["auto-round"] | {"extra_config": {r".*self_attn.*": {"bits": 16, "data_type": "float"}}},
        ("int4", "int4", "bf16"),
    ),
    "modelopt, a star for every layer": (
        FORMS["modelopt"] | {"ignore": [f"model.layers.{i}.self_attn*" for i in LAYERS]},
        ("nvfp4", "nvfp4", "bf16"),
    ),
    "modelopt, mixed": (
        {
            "quant_method": "modelopt",
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {
                f"model.layers.{i}.{name}": {"quant_algo": kind}
                for i in LAYERS
                for name, kind in (
                    *((f"mlp.experts.0.{part}_proj", "NVFP4") for part in ("gate", "up", "down")),
                    *((f"self_attn.{name}", "FP8") for name in PROJECTIONS),
                )
            },
        },
        ("nvfp4", "bf16", "fp8"),
    ),
    "a router that is left out is no expert": (
        FORMS["fp8"] | {"modules_to_not_convert": [f"model.layers.{i}.mlp.gate" for i in LAYERS]},
        ("fp8", "fp8", "fp8"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_modules_left_out_keep_their_own_type(case: str) -> None:
    form, wanted = CASES[case]
    assert types(form) == wanted


def test_what_is_left_out_has_the_checkpoints_own_type() -> None:
    assert types(FORMS["gptq"], torch_dtype="float16") == ("int4", "int4", "fp16")


def test_mixed_types_beside_the_config(tmp_path: Path) -> None:
    """As NVIDIA's Nemotron checkpoints: experts in 4 bits, the rest in 8, by module, in a file of their own."""
    layers = {"model.layers.1.mlp.experts": {"quant_algo": "NVFP4", "group_size": 16}}
    layers |= {f"model.layers.{i}.mlp.experts": {"quant_algo": "NVFP4", "group_size": 16} for i in LAYERS}
    layers |= {f"model.layers.{i}.self_attn": {"quant_algo": "FP8"} for i in LAYERS}
    beside = {
        "quantization": {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8", "quantized_layers": layers}
    }
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    shape = ModelShape.from_config(tmp_path)
    assert (shape.weight_type, shape.dense_type, shape.mixer_type, shape.kv_type) == ("nvfp4", "bf16", "fp8", "fp8")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown method": ({"quant_method": "hqq"}, r"quant_method = 'hqq': not a quantisation that is known"),
    "three bits in one place": (FORMS["gptq"] | {"dynamic": {"+:.*down.*": {"bits": 3}}}, r"dynamic\.bits = 3"),
    "a look-ahead": (FORMS["compressed-tensors"] | {"ignore": ["re:^(?!.*experts).*"]}, "is not read"),
    "a reference back": (FORMS["compressed-tensors"] | {"ignore": [r"re:(a)\1"]}, "is not read"),
    "experts of two types": (
        FORMS["modelopt"] | {"ignore": [f"model.layers.{i}.mlp.experts*" for i in range(30)]},
        "routed experts of several types",
    ),
    "a mixed algorithm without its list": ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "quant_algo"),
    "an unknown one in the list": (
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": {"quant_algo": "W2"}}},
        r"quantized_layers\.a\.quant_algo = 'W2'",
    ),
    "two bits": (FORMS["auto-round"] | {"bits": 2}, r"bits = 2: must be 4 or 8"),
    "floats of a kind": (FORMS["auto-round"] | {"data_type": "fp"}, r"data_type = 'fp'"),
    "types by class": (FORMS["quark"] | {"layer_type_quant_config": {"a": {}}}, "by class of layer"),
    "names that are none": (FORMS["fp8"] | {"ignored_layers": [3]}, "must be a list of names"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_known_is_refused(case: str) -> None:
    form, line = REFUSED[case]
    with pytest.raises(MoecastError, match=line):
        types(form)


@pytest.mark.parametrize("inner", [False, True])
def test_a_quantisation_under_another_name_is_never_bf16(inner: bool) -> None:
    """Older compressed-tensors are read; MLX's alone and vLLM-Ascend's are refused, whatever the class reads."""

    def read(base: dict[str, Any], more: dict[str, Any]) -> ModelShape:
        config = {"text_config": base, **more} if inner else {**base, **more}
        return ModelShape.from_config(config, name="x")

    for base in (BASE, MODELS["mixtral-8x22b"][2]):
        assert read(base, {"compression_config": FORMS["compressed-tensors"]}).weight_type == "int4"
        for more in ({"quantization": {"group_size": 64, "bits": 4}}, {"quantize": "w8a8_dynamic"}):
            with pytest.raises(MoecastError, match=r"quanti\w+ = .*: a quantisation of a form that is not read"):
                read(base, more)
            assert read(base, more | {"quantization_config": FORMS["fp8"]}).weight_type == "fp8"


def test_attention_of_its_own_type_has_its_own_bytes() -> None:
    """Closed form: bytes of the matrices that mix tokens, in bf16 beside experts in 4 bits."""
    whole = ModelShape.from_config({**BASE, "quantization_config": FORMS["fp8"]}, name="x")
    kept = ModelShape.from_config({**BASE, "quantization_config": FORMS["quark"]}, name="x")
    assert (whole.mixer_type, kept.mixer_type) == ("fp8", "bf16")
    assert kept.with_types(dense_type="fp8").mixer_type == "fp8"


# Expressions as such files have them, and names: `re` itself is the judge. A number is followed by a dot: it is taken
# as far as it goes.
PIECES = st.sampled_from(
    [
        ".*",
        ".+",
        r"\.",
        "mlp",
        "self_attn",
        "experts",
        r"\d+\.",
        r"[0-9]+\.",
        "[a-z]_proj",
        "gate",
        "up",
        "(gate|up)_proj",
        "(?:q|k)?",
        "w[13]",
        ".",
        "(mlp|self_attn)",
        "a?",
        "$",
        "^",
        "q_proj|o_proj",
        "(a|.*b)",
    ]
)
NAMES = st.lists(
    st.sampled_from(
        ["model", "layers", "3", "12", "mlp", "self_attn", "experts", "0", "gate_proj", "up_proj", "w1", "q"]
    ),
    min_size=1,
    max_size=7,
).map(".".join)


@given(st.lists(PIECES, max_size=6).map("".join), NAMES)
def test_expressions_mean_what_they_mean_to_engines(expression: str, name: str) -> None:
    assert (name in Names([f"re:{expression}"])) == (re.match(expression, name) is not None)


@given(st.text("ab.*?[!-]", max_size=8).filter(lambda text: re.search(r"[*?\[]", text)), st.text("ab.-", max_size=10))
def test_shell_patterns_mean_a_module_or_one_around_it(pattern: str, name: str) -> None:
    ends = [*(found.start() for found in re.finditer(r"\.", name)), len(name)]
    try:
        found = name in Names([pattern])
    except ValueError:
        return  # a range that runs back
    assert found == any(fnmatch.fnmatchcase(name[:end], pattern) for end in ends)


@given(st.text(max_size=12), NAMES)
def test_any_text_is_a_pattern_or_refused(text: str, name: str) -> None:
    for pattern in (text, f"re:{text}"):
        with contextlib.suppress(ValueError):
            assert (name in Names([pattern])) in (True, False)


def test_no_expression_of_a_file_searches_for_long() -> None:
    name = "model.layers.0." + "a" * 400
    assert name not in Names(["re:" + ".*a" * 60 + "b", "re:" + "a?" * 7 + "b", "*a" * 60 + "b"])


SLOW = {
    "expressions": [rf"re:.*layers\.{i}\..*(a|b|c)_proj.*x{i}" for i in range(1000)],
    "alternatives": ["re:" + "(a|b)" * 7 + str(i) for i in range(200)],
    "shell patterns": [f"model.*_{i}x" for i in range(1999)],
    "too many": [f"model.layers.{i}.*x" for i in range(3000)],
}


@pytest.mark.parametrize("kind", SLOW)
def test_lists_that_would_take_long_are_refused(kind: str) -> None:
    with pytest.raises(MoecastError, match="patterns"):
        types(FORMS["fp8"] | {"ignored_layers": SLOW[kind]})
