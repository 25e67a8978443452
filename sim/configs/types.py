"""Element types of a checkpoint: from `quantization_config`, or the `hf_quant_config.json` that lies beside the config.

What is not known is refused: an unknown quantisation taken for bf16 would be wrong by a factor of
two to four. Modules that are left out keep the checkpoint's own type. How each library says it
stands in `moecast.sim.configs.methods`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moecast.sim.configs.described import WHERE, Described
from moecast.sim.configs.methods import scheme_of
from moecast.sim.configs.modules import NESTED_STEMS, Scheme, is_mixed, priced_type
from moecast.sim.configs.reader import Reader

BESIDE = "hf_quant_config.json"
FLOATS = {
    "bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8", "bf16": "bf16", "fp16": "fp16",
    "fp32": "fp32", "auto": "bf16",
}  # fmt: skip
KV_ALGORITHMS = {"FP8": "fp8", "NVFP4": "nvfp4", "INT8": "int8", "NONE": None, "none": None}
KV_SCHEMES = {(8, "float"): "fp8", (8, "int"): "int8", (4, "float"): "nvfp4"}
OLDER = "compression_config"  # what compressed-tensors wrote before transformers knew it
ELSEWHERE = ("quantization", "quantize")
"""Where MLX and vLLM-Ascend say it, in forms that are not read."""


def read_types(
    reader: Reader, beside: Mapping[str, Any] | None, layers_of: Mapping[str, Sequence[int]]
) -> dict[str, str]:
    """Types of the routed experts, of dense layers and shared experts, of what mixes tokens, and of the KV cache.

    Parameters
    ----------
    layers_of
        The hidden layers that have `experts`, `shared` experts, a `dense` MLP, `attention`, or
        `linear` attention.

    Raises
    ------
    MoecastError
        A quantisation that is not known.
    """
    plain = _plain(reader)
    where, config = _named(reader, WHERE, OLDER)
    if config is None and (said := _named(reader, *ELSEWHERE))[1]:
        raise reader.error("a quantisation of a form that is not read; give quantization_config", *said)
    if config is not None:
        described = Described(reader, config, plain, where=where)
    elif beside is not None:
        inner = beside.get("quantization")
        file = reader.file.with_name(BESIDE) if isinstance(reader.file, Path) else BESIDE
        described = Described(Reader({}, file), inner, plain, where="quantization")
        described.config.setdefault("quant_method", "modelopt")
    else:
        return {"weight_type": plain, "dense_type": plain, "attention_type": plain, "kv_type": _kv_plain(plain)}
    scheme = scheme_of(described)
    if reader.config is not reader.outer:  # text is a part of the model
        scheme = replace(scheme, stems=NESTED_STEMS)
    return {**_by_part(described, scheme, layers_of), "kv_type": _kv(described)}


def _named(reader: Reader, *names: str) -> tuple[str, Any]:
    """The first of the names under which the part of the text, or else the whole, says something."""
    places = ((name, config[name]) for name in names for config in (reader.config, reader.outer) if name in config)
    return next(((name, value) for name, value in places if value is not None), (names[0], None))


def _by_part(described: Described, scheme: Scheme, layers_of: Mapping[str, Sequence[int]]) -> dict[str, str]:
    counted = {part: scheme.types_of(part, layers) for part, layers in layers_of.items()}
    if is_mixed(counted["experts"]):
        found = ", ".join(f"{kind} ({count})" for kind, count in counted["experts"].most_common())
        raise described.error("routed experts of several types are not priced", "", found)
    experts = priced_type(counted["experts"]) or described.plain
    dense = priced_type(counted["shared"] + counted["dense"])
    mixers = priced_type(counted["attention"] + counted["linear"]) or described.plain
    return {"weight_type": experts, "dense_type": dense or mixers, "attention_type": mixers}


def _plain(reader: Reader) -> str:
    """The type of what is not quantised."""
    places = ((reader.config, "torch_dtype"), (reader.config, "dtype"), (reader.outer, "torch_dtype"))
    named = [(field, config[field]) for config, field in (*places, (reader.outer, "dtype")) if config.get(field)]
    field, found = named[0] if named else ("torch_dtype", "bfloat16")
    kind = FLOATS.get(found.removeprefix("torch.")) if isinstance(found, str) else None
    if kind is None:
        raise reader.error(f"one of {', '.join(FLOATS)}", field, found)
    return kind


def _kv_plain(plain: str) -> str:
    """Engines keep no float32 cache, and FP8 weights do not make an FP8 one."""
    return "fp16" if plain == "fp16" else "bf16"


def _kv(described: Described) -> str:
    """compressed-tensors, modelopt and Quark describe the cache's numbers; others say nothing of it."""
    scheme, plain = described.config.get("kv_cache_scheme"), _kv_plain(described.plain)
    if scheme is not None:
        bits, kind = (scheme.get("num_bits"), scheme.get("type")) if isinstance(scheme, Mapping) else (scheme, None)
        found = KV_SCHEMES.get((bits, kind)) if isinstance(bits, int) and isinstance(kind, str) else None
        if found is None:
            raise described.error("8 bits, int or float, or 4 bits, float", "kv_cache_scheme", scheme)
        return found
    algorithm = described.config.get("kv_cache_quant_algo")
    if algorithm is not None:
        if not isinstance(algorithm, str) or algorithm not in KV_ALGORITHMS:
            raise described.error("FP8, NVFP4 or INT8", "kv_cache_quant_algo", algorithm)
        return KV_ALGORITHMS[algorithm] or plain
    return _quark_kv(described, plain)


def _quark_kv(described: Described, plain: str) -> str:
    """Quark names the projections whose outputs are kept, and their type."""
    kinds = set()
    for name, own in described.table("kv_cache_quant_config").items():
        outputs = own.get("output_tensors") if isinstance(own, Mapping) else None
        kind = outputs.get("dtype") if isinstance(outputs, Mapping) else None
        if kind != "fp8_e4m3":
            raise described.error("fp8_e4m3", f"kv_cache_quant_config.{name}.output_tensors.dtype", kind)
        kinds.add("fp8")
    return kinds.pop() if kinds else plain
