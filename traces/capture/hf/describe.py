"""What a captured trace says about itself: the model as it ran, and the software and hardware it ran on."""

from __future__ import annotations

import datetime as dt
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from moecast.traces import TraceMeta
from moecast.traces.capture.hf.layers import MoeLayer

_ORDER = "Choices stand in the order in which the router gave them."


def describe(
    model: PreTrainedModel,
    layers: Sequence[MoeLayer],
    choices: int,
    *,
    name: str | None,
    adapters: Mapping[str, str],
    source: Mapping[str, Any],
    notes: str,
) -> TraceMeta:
    """Metadata of a model's trace; `source` is added to what is found here, and wins where both say something."""
    config = model.config
    loaded_as = getattr(config, "name_or_path", "") or ""
    found = {
        "capture": "transformers hooks",
        "heard_at": layers[0].heard_at,
        "model_class": type(model).__name__,
        "revision": getattr(config, "_commit_hash", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": getattr(config, "_attn_implementation", None),
        "device": sorted({_hardware(module) for layer in layers for module in layer.modules}),
        "adapters": dict(adapters) or None,
        "software": {package: version(package) for package in ("transformers", "torch", "moecast")}
        | {"python": platform.python_version()},
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }
    return TraceMeta(
        model=name or (Path(loaded_as).name if Path(loaded_as).is_dir() else loaded_as) or type(model).__name__,
        layers=len(layers),
        experts=max(layer.experts for layer in layers),
        choices=choices,
        config=_config_json(config),
        layer_ids=tuple(layer.layer_id for layer in layers),
        source={key: value for key, value in {**found, **source}.items() if value is not None},
        notes=" ".join(filter(None, [_adapted(adapters), notes, _ORDER])),
    )


def find_adapters(model: torch.nn.Module) -> dict[str, str]:
    """Adapters of PEFT that a model carries: the kind of each by its name."""
    carried: Any = (getattr(part, "peft_config", None) for part in model.modules())
    configs: Mapping[str, Any] = next(filter(None, carried), {})
    return {name: str(getattr(config.peft_type, "value", config.peft_type)) for name, config in configs.items()}


def _adapted(adapters: Mapping[str, str]) -> str:
    listed = ", ".join(f"{name} ({kind})" for name, kind in adapters.items())
    return f"The model carried adapters: {listed}." if listed else ""


def _config_json(config: Any) -> dict[str, Any]:
    """The config.json of the model as it runs, without the folder it was loaded from."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    values.pop("_name_or_path", None)
    return values


def _hardware(module: torch.nn.Module) -> str:
    """The processor that holds a module's weights, or to which accelerate brings them when the module runs."""
    hook: Any = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))
    runs_on = next((each.execution_device for each in hooks if hasattr(each, "execution_device")), None)
    weight = next(module.parameters(), None)
    kind = weight.device if weight is not None else torch.device("cpu")
    if kind.type == "meta" and runs_on is not None:
        kind = torch.device(runs_on)
    if kind.type == "cuda":
        return torch.cuda.get_device_name(kind)
    return kind.type if kind.type != "cpu" else f"cpu ({platform.processor() or platform.machine()})"
