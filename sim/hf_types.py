"""Element types of a checkpoint: from `quantization_config`, or the `hf_quant_config.json` that lies beside the config.

What is not known is refused: an unknown quantisation taken for bf16 would be wrong by a factor of two to four.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from moecast.errors import MoecastError
from moecast.sim.hf_reader import Reader

BESIDE = "hf_quant_config.json"
FLOATS = {
    "bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8", "bf16": "bf16", "fp16": "fp16",
    "fp32": "fp32", "auto": "bf16",
}  # fmt: skip
# modelopt's algorithms: type of the weights of what is quantised.
ALGORITHMS = {
    "FP8": "fp8", "FP8_PB_WO": "fp8", "FP8_BLOCK_SCALES": "fp8", "FP8_PER_CHANNEL_PER_TOKEN": "fp8", "NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4", "W4A16_NVFP4": "nvfp4", "W4A16_AWQ": "int4", "W4A8_AWQ": "int4", "W4A16": "int4",
    "W4A8_MXFP4_FP8": "mxfp4", "W4A16_MXFP4": "mxfp4", "MXFP4": "mxfp4", "INT8": "int8", "W8A16": "int8",
    "W8A8_SQ_PER_CHANNEL": "int8",
}  # fmt: skip
KV_ALGORITHMS = {"FP8": "fp8", "NVFP4": "nvfp4", "INT8": "int8", None: None, "NONE": None, "none": None}
SKIPPED = ("ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers", "modules_to_not_quantize")

# A name of each kind of module, as checkpoints call them: patterns of what is left out are matched against these.
EXPERT_NAMES = tuple(
    f"model.{stem}layers.{{layer}}.{block}.experts.{part}"
    for stem in ("", "language_model.")
    for block in ("mlp", "block_sparse_moe", "feed_forward", "moe", "mixer")
    for part in ("0.gate_proj", "0.w1", "0.up_proj", "gate_up_proj")
)
ATTENTION_NAMES = tuple(
    f"model.{stem}layers.{{layer}}.{name}"
    for stem in ("", "language_model.")
    for name in ("self_attn.q_proj", "self_attn.o_proj", "self_attn.q_b_proj", "linear_attn.out_proj", "attn.q_proj")
)


def read_types(reader: Reader, beside: Mapping[str, Any] | None) -> dict[str, str]:
    """Types of the routed experts, of the other matrices, and of the KV cache.

    Raises
    ------
    MoecastError
        A quantisation that is not known.
    """
    plain = _plain(reader)
    config = reader.config.get("quantization_config", reader.outer.get("quantization_config"))
    if config is None and beside is not None:
        return _beside(reader, beside, plain)
    if config is None:
        return {"weight_type": plain, "dense_type": plain, "kv_type": _kv_plain(plain)}
    if not isinstance(config, Mapping):
        raise reader.error("must be an object", "quantization_config", config)
    method = config.get("quant_method")
    read = METHODS.get(method) if isinstance(method, str) else None
    if method is None and "config_groups" in config:
        read = _groups
    if read is None:
        known = ", ".join(METHODS)
        raise reader.error(f"not a quantisation that is known ({known})", "quantization_config.quant_method", method)
    weights = read(reader, config)
    types = _by_module(reader, config, weights, plain)
    return {**types, "kv_type": _kv(reader, config, plain)}


def _plain(reader: Reader) -> str:
    """The type of what is not quantised."""
    found = reader.config.get("torch_dtype") or reader.config.get("dtype") or reader.outer.get("torch_dtype")
    if found is None:
        found = reader.outer.get("dtype") or "bfloat16"
    kind = FLOATS.get(str(found).removeprefix("torch."))
    if kind is None:
        raise reader.error(f"one of {', '.join(FLOATS)}", "torch_dtype", found)
    return kind


def _kv_plain(plain: str) -> str:
    return (
        "fp16" if plain == "fp16" else "bf16"
    )  # engines keep no float32 cache, and FP8 weights do not make an FP8 one


def _fp8(reader: Reader, config: Mapping[str, Any]) -> str:
    block = config.get("weight_block_size")
    if block not in (None, [128, 128]):
        raise reader.error("must be [128, 128], or absent", "quantization_config.weight_block_size", block)
    return "fp8"


def _mxfp4(_reader: Reader, _config: Mapping[str, Any]) -> str:
    return "mxfp4"


def _bits(reader: Reader, config: Mapping[str, Any]) -> str:
    """GPTQ and AWQ: whole numbers of so many bits, a float16 scale and a zero point per group."""
    bits = config.get("bits", config.get("w_bit", 4))
    kind = {4: "int4", 8: "int8"}.get(bits) if isinstance(bits, int) and not isinstance(bits, bool) else None
    if kind is None:
        raise reader.error("must be 4 or 8", "quantization_config.bits", bits)
    return _grouped(reader, kind, config.get("group_size", config.get("q_group_size", 128)), "group_size")


def _grouped(reader: Reader, kind: str, size: object, field: str) -> str:
    """int4 by its group: 128 or (two to four times as many scales) 32."""
    if kind != "int4" or size in (None, 128, -1):
        return kind
    if size in (32, 64):
        return f"int4_g{size}"
    raise reader.error("must be 32, 64 or 128", f"quantization_config.{field}", size)


def _modelopt(reader: Reader, config: Mapping[str, Any]) -> str:
    algorithm = config.get("quant_algo")
    if algorithm is None and "config_groups" in config:
        return _groups(reader, config)
    return _algorithm(reader, algorithm, "quantization_config.quant_algo")


def _algorithm(reader: Reader, algorithm: object, field: str) -> str:
    kind = ALGORITHMS.get(algorithm) if isinstance(algorithm, str) else None
    if kind is None:
        raise reader.error(f"one of {', '.join(ALGORITHMS)}", field, algorithm)
    return kind


def _groups(reader: Reader, config: Mapping[str, Any]) -> str:
    """compressed-tensors: groups of modules, each with its weights' bits; all groups of the same kind."""
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise reader.error("must name at least one group", "quantization_config.config_groups", groups)
    kinds = {_weights(reader, group) for group in groups.values()}
    if len(kinds) > 1:
        found = " and ".join(sorted(kinds))
        raise reader.error("groups of one type are read", "quantization_config.config_groups", found)
    return kinds.pop()


def _weights(reader: Reader, group: object) -> str:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    field = "quantization_config.config_groups.weights"
    if not isinstance(weights, Mapping):
        raise reader.error("missing", field)
    bits, kind, size = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
    if (bits, kind) == (8, "float"):
        return "fp8"
    if (bits, kind) == (4, "float"):
        return "mxfp4" if size == 32 else "nvfp4"
    if (bits, kind) in ((4, "int"), (8, "int")):
        return _grouped(reader, f"int{bits}", size, "config_groups.weights.group_size")
    raise reader.error("4 or 8 bits, int or float", field, f"{bits} bits, {kind}")


def _quark(reader: Reader, config: Mapping[str, Any]) -> str:
    """AMD's Quark: one description for all layers."""
    described = config.get("global_quant_config")
    weight = described.get("weight") if isinstance(described, Mapping) else None
    kind = weight.get("dtype") if isinstance(weight, Mapping) else None
    found = {"fp8_e4m3": "fp8", "fp4": "mxfp4", "int4": "int4", "int8": "int8"}.get(str(kind))
    if found is None:
        raise reader.error("fp8_e4m3, fp4, int4 or int8", "quantization_config.global_quant_config.weight.dtype", kind)
    return found


METHODS = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "compressed-tensors": _groups,
    "awq": _bits,
    "gptq": _bits,
    "quark": _quark,
}
"""`quant_method` to what reads the type of the weights."""


def _beside(reader: Reader, value: Mapping[str, Any], plain: str) -> dict[str, str]:
    """Modelopt's own file."""
    inner = value.get("quantization")
    if not isinstance(inner, Mapping):
        raise MoecastError("missing", file=BESIDE, field="quantization")
    weights = _algorithm(reader, inner.get("quant_algo"), f"{BESIDE}: quantization.quant_algo")
    algorithm = inner.get("kv_cache_quant_algo")
    if algorithm not in KV_ALGORITHMS:
        raise reader.error("FP8, NVFP4 or INT8", f"{BESIDE}: quantization.kv_cache_quant_algo", algorithm)
    return {**_by_module(reader, inner, weights, plain), "kv_type": KV_ALGORITHMS[algorithm] or _kv_plain(plain)}


def _by_module(reader: Reader, config: Mapping[str, Any], weights: str, plain: str) -> dict[str, str]:
    """Which modules are left out decides what the experts and what the other matrices are."""
    patterns = [pattern for name in SKIPPED for pattern in config.get(name) or () if isinstance(pattern, str)]
    targets = [target for group in (config.get("config_groups") or {}).values() for target in _targets(group)]
    experts = _skipped(EXPERT_NAMES, patterns) or not _targeted(EXPERT_NAMES, targets)
    others = _skipped(ATTENTION_NAMES, patterns) or not _targeted(ATTENTION_NAMES, targets)
    if reader.config.get("quantization_config", {}) and config.get("quant_method") == "mxfp4":
        others = True  # only the experts' matrices are in this form
    return {"weight_type": plain if experts else weights, "dense_type": plain if others else weights}


def _kv(reader: Reader, config: Mapping[str, Any], plain: str) -> str:
    """compressed-tensors and modelopt describe the cache's numbers; others say nothing of it."""
    scheme = config.get("kv_cache_scheme")
    if scheme is None:
        algorithm = config.get("kv_cache_quant_algo")
        if algorithm not in KV_ALGORITHMS:
            raise reader.error("FP8, NVFP4 or INT8", "quantization_config.kv_cache_quant_algo", algorithm)
        return KV_ALGORITHMS[algorithm] or _kv_plain(plain)
    said = f"{scheme.get('num_bits')} bits, {scheme.get('type')}" if isinstance(scheme, Mapping) else str(scheme)
    found = {"8 bits, float": "fp8", "8 bits, int": "int8", "4 bits, float": "nvfp4"}.get(said)
    if found is None:
        raise reader.error("8 bits, int or float, or 4 bits, float", "quantization_config.kv_cache_scheme", said)
    return found


def _targets(group: object) -> Sequence[str]:
    found = group.get("targets") if isinstance(group, Mapping) else None
    return [target for target in found if isinstance(target, str)] if isinstance(found, list) else []


def _targeted(names: Sequence[str], targets: Sequence[str]) -> bool:
    """Whether a module of these names is meant; classes such as Linear mean all."""
    return not targets or any("." not in target.removeprefix("re:.*") for target in targets) or _skipped(names, targets)


def _skipped(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether a middle layer's modules of these names are among the patterns."""
    return any(
        _matches(name.format(layer=layer), pattern) for pattern in patterns for name in names for layer in range(1, 9)
    )


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return _regular(name, pattern[3:])
    if "*" in pattern:
        return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern + "*")
    return name == pattern or name.startswith(pattern + ".") or f".{pattern}." in f".{name}."


def _regular(name: str, pattern: str) -> bool:
    """Match the simple regular expressions of compressed-tensors as shell patterns: nothing of a file is compiled."""
    shell = pattern.replace(".*", "*").replace("\\.", ".").replace("\\d+", "*").strip("^$")
    return fnmatch.fnmatchcase(name, shell)
