"""How the libraries that quantise checkpoints say which modules have which type, by `quant_method`.

Sources: the configs that transformers, compressed-tensors, GPTQModel, AutoAWQ, AutoRound, NVIDIA's
modelopt and AMD's Quark save, and how vLLM reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moecast.sim.configs.described import Described
from moecast.sim.configs.modules import Scheme

# modelopt's algorithms: type of the weights of what is quantised.
ALGORITHMS = {
    "FP8": "fp8", "FP8_PB_WO": "fp8", "FP8_BLOCK_SCALES": "fp8", "FP8_PER_CHANNEL_PER_TOKEN": "fp8", "NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4", "W4A16_NVFP4": "nvfp4", "W4A16_AWQ": "int4", "W4A8_AWQ": "int4", "W4A16": "int4",
    "W4A8_MXFP4_FP8": "mxfp4", "W4A16_MXFP4": "mxfp4", "MXFP4": "mxfp4", "INT8": "int8", "W8A16": "int8",
    "W8A8_SQ_PER_CHANNEL": "int8",
}  # fmt: skip
MIXED = "MIXED_PRECISION"


def _fp8(described: Described) -> Scheme:
    block = described.config.get("weight_block_size")
    if block not in (None, [128, 128]):
        raise described.error("must be [128, 128], or absent", "weight_block_size", block)
    # DeepSeek-V4's
    experts = described.config.get("expert_dtype", described.reader.get("expert_dtype"))
    kind = {None: "fp8", "fp8": "fp8", "fp4": "mxfp4"}.get(experts) if isinstance(experts, str | None) else None
    if kind is None:
        raise described.error("fp8 or fp4", "expert_dtype", experts)
    return Scheme(rules=(described.rule("", (r"re:.*\.experts\.",), kind),), rest="fp8")


def _mxfp4(described: Described) -> Scheme:
    """Only the experts' matrices are in this form."""
    experts = described.rule("", (r"re:.*\.experts\.",), "mxfp4")
    return Scheme(rules=(experts,), rest=described.plain)


def _awq(described: Described) -> Scheme:
    return Scheme(rules=(), rest=_whole_numbers(described, described.config))


def _gptq(described: Described) -> Scheme:
    """GPTQ, with GPTQModel's `dynamic`: `-:` leaves modules out, `+:` or no sign gives them numbers of their own."""
    kind = _whole_numbers(described, described.config)
    kinds = []
    for pattern, own in described.table("dynamic").items():
        if not isinstance(own, Mapping):
            raise described.error("must be an object", f"dynamic.{pattern}", own)
        left_out = pattern.startswith("-:")
        found = described.plain if left_out else _whole_numbers(described, {**described.config, **own}, "dynamic.")
        kinds.append((f"re:{pattern.removeprefix('-:').removeprefix('+:')}", found))
    rules = described.rules("dynamic", kinds)
    inside = described.config.get("modules_in_block_to_quantize")
    if inside is None:
        return Scheme(rules=tuple(rules), rest=kind)
    parts = inside if isinstance(inside, list) else [inside]
    names = [name for part in parts for name in (part if isinstance(part, list) else [part])]
    if not all(isinstance(name, str) for name in names):
        raise described.error("must be lists of names", "modules_in_block_to_quantize", inside)
    rules.append(described.rule("modules_in_block_to_quantize", names, kind))
    return Scheme(rules=tuple(rules), rest=described.plain)


def _auto_round(described: Described) -> Scheme:
    """AutoRound: `extra_config` gives modules numbers of their own, or leaves them at 16 bits."""
    kind = _auto_round_type(described, described.config, "")
    kinds = []
    for name, own in described.table("extra_config").items():
        if not isinstance(own, Mapping):
            raise described.error("must be an object", f"extra_config.{name}", own)
        expression = any(letter in name for letter in "*+?()[]|\\^$")
        found = _auto_round_type(described, {**described.config, **own}, "extra_config.")
        kinds.append((f"re:{name}" if expression else name, found))
    return Scheme(rules=tuple(described.rules("extra_config", sorted(kinds, key=lambda pair: pair[1]))), rest=kind)


def _auto_round_type(described: Described, config: Mapping[str, Any], where: str) -> str:
    if config.get("bits") == 16 or config.get("data_type") == "float":
        return described.plain
    kind, bits, size = config.get("data_type", "int"), config.get("bits"), config.get("group_size")
    if kind == "int":
        return _whole_numbers(described, config, where)
    if kind in ("mx_fp", "mx_fp4") and bits == 4 and size == 32:
        return "mxfp4"
    if kind in ("nv_fp", "nv_fp4", "nv_fp4_with_static_gs") and bits == 4 and size == 16:
        return "nvfp4"
    raise described.error("int, mx_fp4 of groups of 32, or nv_fp4 of groups of 16", f"{where}data_type", kind)


def _whole_numbers(described: Described, config: Mapping[str, Any], where: str = "") -> str:
    """Whole numbers of so many bits, a float16 scale and a zero point per group."""
    bits = config.get("bits", config.get("w_bit", 4))
    kind = {4: "int4", 8: "int8"}.get(bits) if isinstance(bits, int) and not isinstance(bits, bool) else None
    if kind is None:
        raise described.error("must be 4 or 8", f"{where}bits", bits)
    return _grouped(described, kind, config.get("group_size", config.get("q_group_size", 128)), f"{where}group_size")


def _grouped(described: Described, kind: str, size: object, field: str) -> str:
    """int4 by its group: 128 or (two to four times as many scales) 32."""
    if kind != "int4" or size in (None, 128, -1):
        return kind
    if size in (32, 64):
        return f"int4_g{size}"
    raise described.error("must be 32, 64 or 128", field, size)


def _modelopt(described: Described) -> Scheme:
    """One algorithm for all, groups as of compressed-tensors, or one for each of a list of modules."""
    algorithm = described.config.get("quant_algo")
    if algorithm == MIXED:
        layers = described.table("quantized_layers")
        kinds = [(name, _algorithm(described, own, f"quantized_layers.{name}")) for name, own in layers.items()]
        if kinds:
            rules = described.rules("quantized_layers", sorted(kinds, key=lambda pair: pair[1]))
            return Scheme(rules=tuple(rules), rest=described.plain)
    if "config_groups" in described.config and algorithm in (None, MIXED):
        return _groups(described)
    return Scheme(rules=(), rest=_algorithm(described, {"quant_algo": algorithm}, ""))


def _algorithm(described: Described, own: object, field: str) -> str:
    algorithm = own.get("quant_algo") if isinstance(own, Mapping) else own
    kind = ALGORITHMS.get(algorithm) if isinstance(algorithm, str) else None
    if kind is None:
        raise described.error(f"one of {', '.join(ALGORITHMS)}", f"{field}.quant_algo".lstrip("."), algorithm)
    return kind


def _groups(described: Described) -> Scheme:
    """compressed-tensors: groups of modules, each with its weights' bits; classes such as Linear mean all."""
    groups = described.table("config_groups")
    if not groups:
        raise described.error("must name at least one group", "config_groups", groups)
    rules, rest = [], set()
    for group in groups.values():
        kind = _bits_of(described, group.get("weights") if isinstance(group, Mapping) else None)
        targets = group.get("targets", ["Linear"])
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise described.error("must be a list of names", "config_groups.targets", targets)
        if any(target[:1].isupper() and "." not in target for target in targets):
            rest.add(kind)
        else:
            rules.append(described.rule("config_groups.targets", targets, kind))
    if len(rest) > 1:
        raise described.error("several groups mean all layers", "config_groups", " and ".join(sorted(rest)))
    return Scheme(rules=tuple(rules), rest=rest.pop() if rest else described.plain)


def _bits_of(described: Described, weights: object) -> str:
    field = "config_groups.weights"
    if not isinstance(weights, Mapping):
        raise described.error("missing", field)
    bits, kind, size = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
    if (bits, kind) == (8, "float"):
        return "fp8"
    if (bits, kind) == (4, "float"):
        return "mxfp4" if size == 32 else "nvfp4"
    if (bits, kind) in ((4, "int"), (8, "int")):
        return _grouped(described, f"int{bits}", size, f"{field}.group_size")
    raise described.error("4 or 8 bits, int or float", field, [bits, kind])


def _quark(described: Described) -> Scheme:
    """AMD's Quark: one description for all layers, and others for layers by their names."""
    layers = described.table("layer_quant_config")
    kinds = [(name, _quark_type(described, own, f"layer_quant_config.{name}")) for name, own in layers.items()]
    rules = described.rules("layer_quant_config", kinds)
    rest = _quark_type(described, described.config.get("global_quant_config"), "global_quant_config")
    if described.table("layer_type_quant_config"):
        raise described.error("types by class of layer are not read", "layer_type_quant_config")
    return Scheme(rules=tuple(rules), rest=rest)


def _quark_type(described: Described, own: object, field: str) -> str:
    weight = own.get("weight") if isinstance(own, Mapping) else None
    if isinstance(own, Mapping) and weight is None and field != "global_quant_config":
        return described.plain
    kind, size = (weight.get("dtype"), weight.get("group_size")) if isinstance(weight, Mapping) else (None, None)
    if kind == "fp4" and size in (None, 32):
        return "mxfp4"
    if kind in ("int4", "uint4"):
        return _grouped(described, "int4", size, f"{field}.weight.group_size")
    found = {"fp8_e4m3": "fp8", "int8": "int8"}.get(kind) if isinstance(kind, str) else None
    if found is None:
        rule = "fp8_e4m3, fp4 in groups of 32, int4 or int8"
        raise described.error(rule, f"{field}.weight.dtype", kind)
    return found


METHODS: Mapping[str, Callable[[Described], Scheme]] = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "modelopt_mixed": _modelopt,
    "compressed-tensors": _groups,
    "awq": _awq,
    "gptq": _gptq,
    "auto-round": _auto_round,
    "auto_round": _auto_round,
    "intel/auto-round": _auto_round,
    "quark": _quark,
}
"""`quant_method` to what reads the types of the weights."""


def scheme_of(described: Described) -> Scheme:
    """Which modules have which type.

    Raises
    ------
    MoecastError
        A method, a type or a pattern that is not known.
    """
    method = described.config.get("quant_method")
    if method is None and "config_groups" in described.config:
        method = "compressed-tensors"
    read = METHODS.get(method) if isinstance(method, str) else None
    if read is None:
        known = ", ".join(METHODS)
        raise described.error(f"not a quantisation that is known ({known})", "quant_method", method)
    found = read(described)
    return Scheme(rules=(described.left_out(), *found.rules), rest=found.rest)
