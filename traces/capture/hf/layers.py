"""Where a model's routing can be heard: its MoE layers in order, and how each tells its choices.

In transformers 5 a MoE layer hands its experts module what the router chose, (hidden_states,
top_k_index, top_k_weights), so one hook before the experts serves nearly every model. What differs
stands in `EXCEPTIONS`, by the class of the module.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from moecast.errors import MoecastError

Choices = tuple[torch.Tensor, torch.Tensor]  # expert ids [T, K] and gate weights [T, K]
Tell = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], Any], Choices]

_INDEX_NAMES = ("top_k_index", "router_indices", "selected_experts")
_WEIGHT_NAMES = ("top_k_weights", "routing_weights")
# Towers that see no token of the text, and the heads of multi-token prediction.
_OTHER_STACKS = ("vision", "visual", "audio", "mtp")
# PEFT trains a copy of a module in its place (`modules_to_save`) and keeps the original beside it.
_COPY = re.compile(r"\.(original_module|modules_to_save\.[^.]+)")
# Their experts choose inside one kernel with the router, and no module is told.
_FUSED = {"Mxfp4GptOssMLP": "MXFP4 kernels route inside themselves; load it with Mxfp4Config(dequantize=True)"}


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeLayer:
    """One MoE layer: its place among the hidden layers, the modules to listen to, and how its choices are read.

    Of several modules, copies of each other, one runs in a forward pass.
    `experts` is E of this layer. Ids from E up are null experts where `null_ids` is set, and
    choices of weight 0 are none where `null_weights` is.
    """

    layer_id: int
    name: str
    modules: tuple[nn.Module, ...]
    tell: Tell
    heard_at: str
    experts: int
    null_ids: bool = False
    null_weights: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How a module class that needs other than the default is heard."""

    heard_at: str = "experts"
    tell: Tell | None = None
    experts: str = "num_experts"
    null_ids: bool = False
    null_weights: bool = False


def _llama4(module: nn.Module, _args: object, _kwargs: object, output: Any) -> Choices:
    """Read the router's scores [T, E]: the sigmoid of the logit for the experts chosen, 0 for all others."""
    weights_TK, index_TK = torch.topk(output[0], module.top_k, dim=-1)  # type: ignore[arg-type]
    return index_TK, weights_TK


EXCEPTIONS: Mapping[str, Rule] = {
    # Its experts run every token, scaled by scores that are 0 for all but the chosen: only the
    # router knows.
    "Llama4Router": Rule(heard_at="router", tell=_llama4),
    # Zero-computation experts follow the routed ones; they are choices of no expert.
    "LongcatFlashExperts": Rule(experts="num_routed_experts", null_ids=True),
    # The skip expert reaches the experts as expert 0 with weight 0.
    "ZayaExperts": Rule(null_weights=True),
}


def find_layers(model: nn.Module) -> tuple[MoeLayer, ...]:
    """MoE layers of a model, in the order of its hidden layers.

    Raises
    ------
    MoecastError
        There is none that can be heard, a hidden layer has two, or the model has several stacks of
        them.
    """
    stacks: dict[str, list[MoeLayer]] = {}
    for layer in _found(model):
        stacks.setdefault(_split(layer.name)[0], []).append(layer)
    stacks = {name: layers for name, layers in stacks.items() if not _is_other(name)}
    if not stacks:
        raise MoecastError(_nothing_found(model), field="model", value=type(model).__name__)
    if len(stacks) > 1:
        rule = f"has MoE layers in {' and in '.join(stacks)}: capture one of these parts"
        raise MoecastError(rule, field="model", value=type(model).__name__)
    (layers,) = stacks.values()
    ids = [layer.layer_id for layer in layers]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        rule = f"hidden layer {twice[0]} has more than one set of experts, which a trace has no place for"
        raise MoecastError(rule, field="model", value=type(model).__name__)
    return tuple(sorted(layers, key=lambda layer: layer.layer_id))


def _found(model: nn.Module) -> Sequence[MoeLayer]:
    """MoE layers wherever they are, the copies of one as one."""
    found: dict[str, MoeLayer] = {}
    for name, module in model.named_modules():
        if (why := _FUSED.get(type(module).__name__)) is not None:
            raise MoecastError(why, field="model", value=name)
        if (layer := _layer(name, module)) is None:
            continue
        layer = replace(layer, name=_COPY.sub("", name))
        first = found.get(layer.name)
        found[layer.name] = layer if first is None else replace(first, modules=(*first.modules, module))
    return list(found.values())


def _layer(name: str, module: nn.Module) -> MoeLayer | None:
    """The MoE layer that this module tells of, if it does."""
    # Sharding (FSDP) makes a class of its own out of the module's.
    rule = next((EXCEPTIONS[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in EXCEPTIONS), Rule())
    tell = rule.tell or _from_arguments(type(module))
    place = _split(name)[1]
    if tell is None or place is None:
        return None
    if getattr(module, "_is_expert_parallel", False):
        rule_text = "its experts are spread over ranks by transformers' expert parallelism; capture it without"
        raise MoecastError(rule_text, field="model", value=name)
    experts = getattr(module, rule.experts, None)
    if not isinstance(experts, int):
        raise MoecastError(f"the module has no {rule.experts}, so E is not known", field="model", value=name)
    return MoeLayer(
        layer_id=place,
        name=name,
        modules=(module,),
        tell=tell,
        heard_at=rule.heard_at,
        experts=experts,
        null_ids=rule.null_ids,
        null_weights=rule.null_weights,
    )


def _from_arguments(kind: type[nn.Module]) -> Tell | None:
    """Read the choices from the arguments of a module of this class, if its `forward` names them."""
    names = [name for name in inspect.signature(kind.forward).parameters if name != "self"]
    index = _position(names, _INDEX_NAMES)
    weights = _position(names, _WEIGHT_NAMES)
    if index is None or weights is None:
        return None

    def tell(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], _output: object) -> Choices:
        index_TK, weights_TK = (args[i] if i < len(args) else kwargs[names[i]] for i in (index, weights))
        return index_TK, weights_TK

    return tell


def _position(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((i for i, name in enumerate(names) if name in wanted), None)


def _split(name: str) -> tuple[str, int | None]:
    """`model.layers.3.mlp.experts` is layer 3 of the stack `model.layers`."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[:i]), int(part)
    return name, None


def _is_other(stack: str) -> bool:
    return any(word in part for part in stack.split(".") for word in _OTHER_STACKS)


def _nothing_found(model: nn.Module) -> str:
    if any("xperts" in type(module).__name__ for module in model.modules()):
        return "has experts, but none that are told which tokens chose them; its routing cannot be captured"
    return "has no MoE layers that are known here"
