"""Which layers of a model are MoE layers, of how many experts and choices: all that an import has to know of a model.

Read from the names that families use in a `config.json`, so that routing can be imported from a model whose shape the
simulator does not know. Axes: L MoE layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.sim.hf_config import FAMILIES
from moecast.sim.model import ModelShape

_EXPERTS = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts",
    "moe_num_primary_experts",  # SmallThinker
)  # fmt: skip
_CHOICES = (
    "num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k", "experts_per_token",
    "top_k_experts", "moe_num_active_primary_experts",  # Gemma-4, SmallThinker
)  # fmt: skip
_HIDDEN_LAYERS = ("num_hidden_layers", "num_layers", "n_layers")
# What each layer is, and the word for a MoE layer: a list, or a string of letters (Nemotron-H).
_KINDS = (
    ("mlp_layer_types", "sparse"),
    ("layers_block_type", "moe"),
    ("hybrid_override_pattern", "E"),
    ("moe_layer_freq", 1),
    ("moe_layer_layout", 1),
)
_FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "moe_layer_num_skipped")
_MOST_LAYERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSizes:
    """E, K, hidden layers and which of them are MoE layers."""

    name: str
    experts: int
    choices: int
    n_layers: int
    moe_layer_ids: tuple[int, ...]

    @property
    def layers(self) -> int:
        """L."""
        return len(self.moe_layer_ids)

    @classmethod
    def of(cls, shape: ModelShape) -> MoeSizes:
        """Those of a model whose whole shape is known."""
        return cls(
            name=shape.name,
            experts=shape.experts,
            choices=shape.choices,
            n_layers=shape.n_layers,
            moe_layer_ids=shape.moe_layer_ids,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, file: str | Path | None = None, name: str) -> MoeSizes:
        """Read a raw `config.json`; of a family that the simulator does not know, by the names that others use.

        Without a name that tells of dense layers, every hidden layer is a MoE layer, as in Mixtral.

        Raises
        ------
        MoecastError
            A field that is missing or wrong.
        """
        if config.get("model_type") in FAMILIES:
            return cls.of(ModelShape.from_config(config, name=name))
        text = _text(config)
        layers = _layers(text, file)
        if layers > _MOST_LAYERS:
            raise MoecastError(f"must be at most {_MOST_LAYERS}", file=file, field=_HIDDEN_LAYERS[0], value=layers)
        ids = _moe_layer_ids(text, layers, file)
        if not ids:
            raise MoecastError("names no MoE layer", file=file)
        return cls(
            name=name,
            experts=_whole(text, _EXPERTS, file),
            choices=_whole(text, _CHOICES, file),
            n_layers=layers,
            moe_layer_ids=ids,
        )


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the model of text, and what DBRX says of its experts apart."""
    nested = config.get("text_config")
    text = nested if isinstance(nested, Mapping) else config
    feed_forward = text.get("ffn_config")
    return {**feed_forward, **text} if isinstance(feed_forward, Mapping) else text


def _layers(config: Mapping[str, Any], file: str | Path | None) -> int:
    """Hidden layers; a config that lists them need not count them (Nemotron-H in transformers 5)."""
    listed = config.get("layers_block_type")
    counted = any(config.get(name) is not None for name in _HIDDEN_LAYERS)
    return len(listed) if isinstance(listed, list) and not counted else _whole(config, _HIDDEN_LAYERS, file)


def _moe_layer_ids(config: Mapping[str, Any], layers: int, file: str | Path | None) -> tuple[int, ...]:
    """Hidden layers with experts, by whichever names the config uses."""
    every = range(layers)
    for field, kind in _KINDS:
        kinds = config.get(field)
        if isinstance(kinds, list) or (field == "hybrid_override_pattern" and isinstance(kinds, str)):
            if len(kinds) != layers:
                raise MoecastError(f"must have {layers} entries, one per layer", file=file, field=field)
            return tuple(i for i in every if kinds[i] == kind)
    if isinstance(named := config.get("moe_layers"), list):  # Llama-4
        return tuple(i for i in every if i in named)
    if config.get("moe_layer_frequency") is not None:  # Arctic counts layers from 1
        period = _whole(config, ("moe_layer_frequency",), file)
        return tuple(i for i in every if (i + 1) % period == 0)
    first = _optional(config, _FIRST, 0, file)
    last = layers - 1 if config.get("moe_layer_end_index") == -1 else None  # ERNIE's word for the last
    last = _optional(config, ("moe_layer_end_index",), layers - 1, file) if last is None else last
    period = max(_optional(config, ("moe_layer_freq", "decoder_sparse_step", "expert_layer_period"), 1, file), 1)
    offset = _optional(config, ("expert_layer_offset",), period - 1 if "decoder_sparse_step" in config else 0, file)
    dense = config.get("mlp_only_layers") or ()
    return tuple(i for i in every if first <= i <= last and i % period == offset and i not in dense)


def _optional(config: Mapping[str, Any], names: tuple[str, ...], default: int, file: str | Path | None) -> int:
    given = tuple(name for name in names if config.get(name) is not None)
    return _whole(config, given, file, least=0) if given else default


def _whole(config: Mapping[str, Any], names: tuple[str, ...], file: str | Path | None, *, least: int = 1) -> int:
    """The first of the fields that is there; the largest where it is a list, one per layer."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        values = value if isinstance(value, list) and value else [value]
        if all(isinstance(v, int) and not isinstance(v, bool) and least <= v < 2**31 for v in values):
            return int(max(values))
        raise MoecastError(f"must be a whole number of at least {least}", file=file, field=name, value=value)
    raise MoecastError("missing", file=file, field=" or ".join(names))
