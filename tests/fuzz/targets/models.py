"""Models: Hugging Face `config.json`, with the `hf_quant_config.json` that may lie beside it."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from hypothesis import strategies as st

from moecast.sim import load_model
from moecast.sim.models import PRESETS
from tests.fuzz.mutations import write_json
from tests.fuzz.runner import Target
from tests.sim.test_published_models import MODELS

_BESIDE: tuple[Any, ...] = (
    None,
    None,
    {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}},
    {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head", "model.layers.0*"]}},
)
_INSIDE: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}},
    {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}},
    {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}},
            "ignore": ["lm_head"],
        }
    },
)


def _documents() -> st.SearchStrategy[Any]:
    known = [dict(preset.config) for preset in PRESETS.values()] + [fields for *_, fields in MODELS.values()]
    nested = [{"model_type": "some_vl", "text_config": fields} for fields in known[-3:]]
    config = st.builds(lambda one, more: {**one, **more}, st.sampled_from([*known, *nested]), st.sampled_from(_INSIDE))
    return st.tuples(config, st.sampled_from(_BESIDE))


def _write(document: tuple[Any, Any], rng: Random, folder: Path) -> Path:
    config, beside = document
    (folder / "config.json").write_bytes(write_json(config, rng))
    if beside is not None:
        (folder / "hf_quant_config.json").write_bytes(write_json(beside, rng))
    return folder if rng.random() < 0.5 else folder / "config.json"


def _read(path: Path) -> object:
    """What is read is counted too: parameters, bytes, KV bytes."""
    model = load_model(path)
    return model.total_parameters(), model.active_parameters(), model.kv_bytes_per_token


TARGETS = (Target(name="model-config", documents=_documents, write=_write, read=_read),)
