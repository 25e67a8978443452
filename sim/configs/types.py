"""Element types of a checkpoint: from `quantization_config`, or the `hf_quant_config.json` that lies beside the config.

What is not known is refused: an unknown quantisation taken for bf16 would be wrong by a factor of two to four. Modules
that are left out keep the checkpoint's own type. Sources: the configs that transformers, compressed-tensors, GPTQModel,
AutoAWQ, AutoRound, NVIDIA's modelopt and AMD's Quark save, and how vLLM reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.sim.configs.modules import NESTED_STEMS, Rule, Scheme, is_mixed, priced_type
from moecast.sim.configs.patterns import Names
from moecast.sim.configs.reader import Reader

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
MIXED = "MIXED_PRECISION"
KV_ALGORITHMS = {"FP8": "fp8", "NVFP4": "nvfp4", "INT8": "int8", "NONE": None, "none": None}
KV_SCHEMES = {(8, "float"): "fp8", (8, "int"): "int8", (4, "float"): "nvfp4"}
SKIPPED = (
    "ignore",
    "exclude",
    "exclude_modules",
    "modules_to_not_convert",
    "ignored_layers",
    "modules_to_not_quantize",
)
WHERE = "quantization_config"
OLDER = "compression_config"  # what compressed-tensors wrote before transformers knew it
ELSEWHERE = ("quantization", "quantize")
"""Where MLX and vLLM-Ascend say it, in forms that are not read."""
MOST_RULES = 100


def read_types(
    reader: Reader, beside: Mapping[str, Any] | None, layers_of: Mapping[str, Sequence[int]]
) -> dict[str, str]:
    """Types of the routed experts, of dense layers and shared experts, of what mixes tokens, and of the KV cache.

    Parameters
    ----------
    layers_of
        The hidden layers that have `experts`, `shared` experts, a `dense` MLP, `attention`, or `linear` attention.

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
    scheme = described.scheme()
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


class Described:
    """A quantisation as a config describes it, with typed look-ups."""

    def __init__(self, reader: Reader, config: object, plain: str, *, where: str = WHERE) -> None:
        self.reader, self.plain, self.where = reader, plain, where
        if not isinstance(config, Mapping):
            raise reader.error("must be an object", where, config)
        self.config = dict(config)

    def error(self, rule: str, field: str, value: object = None) -> MoecastError:
        """Name the file and the field."""
        return self.reader.error(rule, f"{self.where}.{field}" if field else self.where, value)

    def scheme(self) -> Scheme:
        """Which modules have which type.

        Raises
        ------
        MoecastError
            A method, a type or a pattern that is not known.
        """
        method = self.config.get("quant_method")
        if method is None and "config_groups" in self.config:
            method = "compressed-tensors"
        read = METHODS.get(method) if isinstance(method, str) else None
        if read is None:
            known = ", ".join(METHODS)
            raise self.error(f"not a quantisation that is known ({known})", "quant_method", method)
        found = read(self)
        return Scheme(rules=(self.left_out(), *found.rules), rest=found.rest)

    def left_out(self) -> Rule:
        """What keeps the checkpoint's own type."""
        return self.rule("", [name for field in SKIPPED for name in self.strings(field)], self.plain)

    def rule(self, field: str, names: Iterable[str], kind: str) -> Rule:
        """Modules of these names have this type."""
        try:
            return Rule(names=Names(names), type=kind)
        except ValueError as error:
            raise self.error(str(error), field) from error

    def rules(self, field: str, kinds: Iterable[tuple[str, str]]) -> list[Rule]:
        """Modules by name, and the type of each; neighbours of one type together."""
        runs = [(kind, [name for name, _ in run]) for kind, run in groupby(kinds, key=lambda pair: pair[1])]
        if len(runs) > MOST_RULES:
            raise self.error(f"changes between types more than {MOST_RULES} times", field)
        return [self.rule(field, names, kind) for kind, names in runs]

    def strings(self, field: str) -> list[str]:
        """A list of names; what is no string in it means nothing to the libraries either, and is refused."""
        value = self.config.get(field)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.error("must be a list of names", field, value)
        return value

    def table(self, field: str) -> Mapping[str, Any]:
        """An object; empty where there is none."""
        value = self.config.get(field)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error("must be an object", field, value)
        return value


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
    return (
        "fp16" if plain == "fp16" else "bf16"
    )  # engines keep no float32 cache, and FP8 weights do not make an FP8 one


def _fp8(described: Described) -> Scheme:
    block = described.config.get("weight_block_size")
    if block not in (None, [128, 128]):
        raise described.error("must be [128, 128], or absent", "weight_block_size", block)
    experts = described.config.get("expert_dtype", described.reader.get("expert_dtype"))  # DeepSeek-V4's
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
