"""The shape of a model: the widths, layers and element types that decide its bytes and its arithmetic.

Axes in the comments: L MoE layer, E routed expert, K choice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.files import read_text
from moecast.sim import element_types
from moecast.sim.attention_shape import AttentionShape
from moecast.sim.hf_config import shape_fields
from moecast.sim.models import PRESETS


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder-only Mixture-of-Experts transformer, as far as time and memory need it.

    Parameters
    ----------
    name
        What outputs call it.
    hidden, vocab
        Width of the residual stream; size of the vocabulary.
    n_layers, moe_layer_ids
        Hidden layers, dense ones included; which of them are MoE layers.
    experts, choices, expert_intermediate
        E and K of each MoE layer; inner width of one routed expert (gate, up and down matrices).
    shared_experts, shared_intermediate
        Experts that every token visits, and the inner width of all of them together; 0 where there are none.
    dense_intermediate
        Inner width of the MLP of the layers that are not MoE; 0 where all are.
    attention
        Kind and sizes of the attention.
    weight_type, dense_type
        Element type of the routed experts; of attention, dense layers and shared experts. Embedding, router, norms and
        LM head are bf16.
    kv_type
        Element type of the KV cache.
    tied_embedding
        The LM head is the embedding matrix.

    Raises
    ------
    ValueError
        A size out of range, layer ids that are not rising layers of the model, or an unknown element type.
    """

    name: str
    hidden: int
    n_layers: int
    moe_layer_ids: tuple[int, ...]
    experts: int
    choices: int
    expert_intermediate: int
    attention: AttentionShape
    vocab: int
    shared_experts: int = 0
    shared_intermediate: int = 0
    dense_intermediate: int = 0
    weight_type: str = "bf16"
    dense_type: str = "bf16"
    kv_type: str = "bf16"
    tied_embedding: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        for field in ("hidden", "n_layers", "experts", "choices", "expert_intermediate", "vocab"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} = {getattr(self, field)}: must be at least 1")
        for field in ("shared_experts", "shared_intermediate", "dense_intermediate"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} = {getattr(self, field)}: must not be negative")
        if self.choices > self.experts:
            raise ValueError(f"choices = {self.choices}: a token cannot choose more than the {self.experts} experts")
        ids = self.moe_layer_ids
        if not ids or any(b <= a for a, b in zip((-1, *ids), ids, strict=False)) or ids[-1] >= self.n_layers:
            raise ValueError(f"moe_layer_ids = {ids}: rising numbers below n_layers = {self.n_layers}, at least one")
        if len(ids) < self.n_layers and not self.dense_intermediate:
            raise ValueError(f"dense_intermediate = 0: {self.n_layers - len(ids)} layers are not MoE and need a width")
        for field in ("weight_type", "dense_type", "kv_type"):
            element_types.check_type(getattr(self, field))

    @property
    def layers(self) -> int:
        """L: how many MoE layers."""
        return len(self.moe_layer_ids)

    @property
    def dense_layer_ids(self) -> tuple[int, ...]:
        """The hidden layers that are not MoE."""
        moe = set(self.moe_layer_ids)
        return tuple(layer for layer in range(self.n_layers) if layer not in moe)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | str | Path, *, name: str | None = None) -> ModelShape:
        """Read a Hugging Face `config.json`: a file, a folder that holds one, or its value.

        Raises
        ------
        MoecastError
            The file cannot be read; the architecture is not known; a field is missing, of the wrong type or out of
            range.
        """
        file: Path | None = None
        if not isinstance(config, Mapping):
            file = Path(config)
            file = file / "config.json" if file.is_dir() else file
            config = _read_object(file)
        where = file if file is not None else name
        fields = shape_fields(config, file=where)
        default = (
            file.parent.name if file is not None and file.name == "config.json" else file.stem if file else "model"
        )
        try:
            return cls(name=name or default or "model", **fields)
        except ValueError as error:
            raise MoecastError(str(error), file=where) from error

    def with_routing(
        self, name: str, *, layers: int, experts: int, choices: int, layer_ids: tuple[int, ...] | None = None
    ) -> ModelShape:
        """Put the L, E, K and layer ids of another model's routing under the widths, attention and types of this one.

        Where the other's layer ids are not known, its MoE layers follow as many dense layers as this model starts with.
        Hidden layers below the last MoE layer that are not MoE are dense; without a dense width here they take the
        width of K experts.
        """
        if layer_ids is None:
            layer_ids = tuple(range(self.moe_layer_ids[0], self.moe_layer_ids[0] + layers))
        n_layers = layer_ids[-1] + 1
        dense = self.dense_intermediate or (choices * self.expert_intermediate if len(layer_ids) < n_layers else 0)
        return replace(
            self,
            name=f"routing of {name} at the dimensions of {self.name}",
            n_layers=n_layers,
            attention=self.attention.repeated(self.n_layers, n_layers),
            moe_layer_ids=layer_ids,
            experts=experts,
            choices=choices,
            dense_intermediate=dense,
        )

    def with_dims(self, other: ModelShape) -> ModelShape:
        """Keep the L, E, K and layer ids, and take the widths, attention and element types of `other`."""
        return other.with_routing(
            self.name, layers=self.layers, experts=self.experts, choices=self.choices, layer_ids=self.moe_layer_ids
        )

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert: gate, up and down."""
        return 3 * self.hidden * self.expert_intermediate

    @property
    def expert_bytes(self) -> int:
        """Bytes of one routed expert's weights."""
        return round(self.expert_parameters * element_types.weight_bytes(self.weight_type))

    @property
    def shared_parameters(self) -> int:
        """Weights of one layer's shared experts."""
        return 3 * self.hidden * self.shared_intermediate

    @property
    def dense_parameters(self) -> int:
        """Weights of one dense layer's MLP."""
        return 3 * self.hidden * self.dense_intermediate

    @property
    def router_parameters(self) -> int:
        """Weights of one layer's router."""
        return self.hidden * self.experts

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's attention."""
        return self.attention.parameters(self.hidden)

    def total_parameters(self) -> int:
        """Count all weights; biases, norms inside attention (under 0.1 %) and multi-token prediction are left out."""
        per_moe_layer = self.experts * self.expert_parameters + self.shared_parameters + self.router_parameters
        return (
            self._common_parameters() + self.layers * per_moe_layer + (1 if self.tied_embedding else 2) * self._matrix
        )

    def active_parameters(self, *, embedding: bool = True) -> int:
        """Count the weights that one token meets, K experts of each layer; with `embedding`, that matrix too."""
        per_moe_layer = self.choices * self.expert_parameters + self.shared_parameters + self.router_parameters
        matrices = 2 if embedding and not self.tied_embedding else 1
        return self._common_parameters() + self.layers * per_moe_layer + matrices * self._matrix

    @property
    def _matrix(self) -> int:
        return self.vocab * self.hidden

    def _common_parameters(self) -> int:
        norms = (2 * self.n_layers + 1) * self.hidden
        dense = len(self.dense_layer_ids) * self.dense_parameters
        return norms + dense + self.n_layers * self.attention_parameters

    def type_bytes(self, element_type: str) -> float:
        """Bytes per weight of an element type, its share of the block scales included."""
        return element_types.weight_bytes(element_type)

    def copy_bytes(self, element_type: str) -> int:
        """Bytes of one dispatched token copy: the hidden vector with its scales, and 16 bytes of metadata."""
        return element_types.row_bytes(element_type, self.hidden) + element_types.COPY_METADATA_BYTES

    @property
    def dispatch_type(self) -> str:
        """Element type in which engines dispatch by default: what the experts multiply, FP8 or else bf16."""
        return "fp8" if self.weight_type == "fp8" else "bf16"

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token adds to one layer's KV cache."""
        return element_types.row_bytes(self.kv_type, self.attention.kv_width)


def list_models() -> tuple[str, ...]:
    """List the names of the presets."""
    return tuple(PRESETS)


def load_model(name_or_path: str | Path) -> ModelShape:
    """Load a preset by name, or the `config.json` (or the folder that holds it) at a path.

    Raises
    ------
    MoecastError
        Neither a preset nor a readable, known config.
    """
    name = str(name_or_path)
    if name in PRESETS:
        return ModelShape.from_config(PRESETS[name].config, name=name)
    if not Path(name).exists():
        raise MoecastError(f"no such file and no such preset; presets: {', '.join(PRESETS)}", field="model", value=name)
    return ModelShape.from_config(Path(name))


def _read_object(file: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(read_text(file, limit_bytes=16 << 20))
    except (json.JSONDecodeError, RecursionError) as error:
        raise MoecastError("not JSON", file=file) from error
    if not isinstance(value, dict):
        raise MoecastError("not a JSON object", file=file)
    return value
