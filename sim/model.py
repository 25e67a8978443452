"""The shape of a model: the widths, layers and element types that decide its bytes and its arithmetic.

Axes in the comments: L MoE layer, E routed expert, K choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.sim import element_types
from moecast.sim.attention_shape import AttentionShape, LinearAttention, Mixer
from moecast.sim.configs.files import config_fields
from moecast.sim.parameters import CONTROL_TYPE, Parameters

# of an element of a linear layer's state (`mamba_ssm_dtype`: float32 in the published configs)
STATE_BYTES = 4


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
        Experts that every token visits, and the inner width of all of them together; 0 where there
        are none.
    dense_intermediate
        Inner width of the MLP of the layers that are not MoE; 0 where all are.
    attention
        Kind and sizes of the attention.
    more_attention, mixer_of_layer
        Models that mix tokens in several ways: the others; and of each hidden layer the number of
        its own (0 is `attention`), -1 where it has none. Empty: all layers have `attention`.
    no_mlp_layers
        Hidden layers without an MLP or experts.
    gated
        Whether an MLP or expert has a gate beside its up matrix (SwiGLU): three matrices, else two.
    expert_hidden
        Width in which the routed experts work, where that is not `hidden` (latent experts); 0: it
        is.
    expert_groups, groups_per_token
        Group-limited routing: experts stand in so many equal groups, and a token chooses from so
        many of them.
    named_shape
        L, E and K of the model that the name is of, where this is only part of it or has another's
        routing; None: the shape's own.
    weight_type, dense_type, attention_type
        Element type of the routed experts; of dense layers and shared experts; of what mixes tokens
        (None: as `dense_type`). Embedding, router, norms and LM head are bf16.
    kv_type
        Element type of the KV cache.
    tied_embedding
        The LM head is the embedding matrix.

    Raises
    ------
    ValueError
        A size out of range, layer ids that are not rising layers of the model, or an unknown
        element type.
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
    attention_type: str | None = None
    kv_type: str = "bf16"
    tied_embedding: bool = False
    more_attention: tuple[Mixer, ...] = ()
    mixer_of_layer: tuple[int, ...] = ()
    no_mlp_layers: tuple[int, ...] = ()
    gated: bool = True
    expert_hidden: int = 0
    expert_groups: int = 1
    groups_per_token: int = 1
    named_shape: tuple[int, int, int] | None = None

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
        if not set(self.no_mlp_layers) <= set(range(self.n_layers)) - set(ids):
            raise ValueError(f"no_mlp_layers = {self.no_mlp_layers}: hidden layers that are not MoE")
        if self.dense_layer_ids and not self.dense_intermediate:
            raise ValueError(f"dense_intermediate = 0: {len(self.dense_layer_ids)} layers are not MoE and need a width")
        self._check_mixers()
        self._check_groups()
        for kind in (self.weight_type, self.dense_type, self.mixer_type):
            element_types.check_type(kind)
        element_types.check_cache_type(self.kv_type)

    def _check_mixers(self) -> None:
        if self.mixer_of_layer and len(self.mixer_of_layer) != self.n_layers:
            raise ValueError(f"mixer_of_layer has {len(self.mixer_of_layer)} entries, the model {self.n_layers} layers")
        if not all(-1 <= index <= len(self.more_attention) for index in self.mixer_of_layer):
            raise ValueError(f"mixer_of_layer = {self.mixer_of_layer}: -1 to {len(self.more_attention)}")

    def _check_groups(self) -> None:
        if self.expert_groups < 1 or self.experts % self.expert_groups:
            raise ValueError(f"expert_groups = {self.expert_groups}: must divide the {self.experts} experts")
        if not 1 <= self.groups_per_token <= self.expert_groups:
            raise ValueError(f"groups_per_token = {self.groups_per_token}: 1 to the {self.expert_groups} groups")
        if self.groups_per_token * (self.experts // self.expert_groups) < self.choices:
            raise ValueError(f"groups_per_token = {self.groups_per_token}: too few experts for {self.choices} choices")

    @property
    def layers(self) -> int:
        """L: how many MoE layers."""
        return len(self.moe_layer_ids)

    @property
    def shape_LEK(self) -> tuple[int, int, int]:
        """L, E and K."""
        return self.layers, self.experts, self.choices

    @property
    def is_whole(self) -> bool:
        """Whether a step of this is a step of the model that the name is of."""
        return self.named_shape in (None, self.shape_LEK)

    @property
    def dense_layer_ids(self) -> tuple[int, ...]:
        """The hidden layers whose MLP is not MoE."""
        other = {*self.moe_layer_ids, *self.no_mlp_layers}
        return tuple(layer for layer in range(self.n_layers) if layer not in other)

    @property
    def mixer_type(self) -> str:
        """Element type of the matrices of attention and of what stands in its place."""
        return self.dense_type if self.attention_type is None else self.attention_type

    def mixer_of(self, layer_id: int) -> Mixer | None:
        """Return what mixes the tokens of a hidden layer; None where nothing does."""
        index = self.mixer_of_layer[layer_id] if self.mixer_of_layer else 0
        return None if index < 0 else (self.attention, *self.more_attention)[index]

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | str | Path, *, name: str | None = None) -> ModelShape:
        """Read a Hugging Face `config.json`: a file, a folder that holds one, or its value.

        A `hf_quant_config.json` beside the file says how the checkpoint is quantised where the
        config does not.

        Raises
        ------
        MoecastError
            The file cannot be read; a field is missing, of the wrong type or out of range, or says
            what cannot be priced.
        """
        default, fields, where = config_fields(config, name=name)
        try:
            return cls(name=name or default, **fields)
        except ValueError as error:
            raise MoecastError(str(error), file=where) from error

    def with_routing(
        self, name: str, *, layers: int, experts: int, choices: int, layer_ids: tuple[int, ...] | None = None
    ) -> ModelShape:
        """Put the L, E, K and layer ids of another model's routing under the widths, attention and types of this one.

        Where the other's layer ids are not known, its MoE layers follow as many dense layers as
        this model starts with. Hidden layers below the last MoE layer that are not MoE are dense;
        without a dense width here they take the width of K experts.
        """
        if layer_ids is None:
            layer_ids = tuple(range(self.moe_layer_ids[0], self.moe_layer_ids[0] + layers))
        n_layers = layer_ids[-1] + 1
        dense = self.dense_intermediate or (choices * self.expert_intermediate if len(layer_ids) < n_layers else 0)
        ids, kept = set(layer_ids), self.mixer_of_layer
        grouped = (experts, choices) == (self.experts, self.choices)
        return replace(
            self,
            name=f"routing of {name} at the dimensions of {self.name}",
            n_layers=n_layers,
            attention=self.attention.repeated(self.n_layers, n_layers),
            more_attention=tuple(
                mixer.repeated(self.n_layers, n_layers) if isinstance(mixer, AttentionShape) else mixer
                for mixer in self.more_attention
            ),
            mixer_of_layer=tuple(kept[layer % self.n_layers] for layer in range(n_layers)) if kept else (),
            no_mlp_layers=tuple(
                layer for layer in range(n_layers) if layer % self.n_layers in self.no_mlp_layers and layer not in ids
            ),
            moe_layer_ids=layer_ids,
            experts=experts,
            choices=choices,
            dense_intermediate=dense,
            expert_groups=self.expert_groups if grouped else 1,
            groups_per_token=self.groups_per_token if grouped else 1,
            named_shape=self.named_shape or self.shape_LEK,
        )

    def of_layers(self, layer_ids: tuple[int, ...]) -> ModelShape:
        """Keep only some MoE layers, each with its attention.

        For routing that was recorded of some layers only: what comes out is no step of the whole
        model, and its name says so.

        Raises
        ------
        ValueError
            A layer that is no MoE layer of the model.
        """
        wrong = sorted(set(layer_ids) - set(self.moe_layer_ids))
        if wrong:
            raise ValueError(f"layer {wrong[0]} is no MoE layer of {self.name}")
        return self._only(
            layer_ids,
            name=f"{len(layer_ids)} of the {self.layers} MoE layers of {self.name}",
            moe_layer_ids=tuple(range(len(layer_ids))),
            no_mlp_layers=(),
            dense_intermediate=0,
        )

    def part(self, layer_ids: tuple[int, ...]) -> ModelShape:
        """Keep some hidden layers, dense ones too, as a pipeline stage does: what comes out is no whole model.

        Raises
        ------
        ValueError
            A layer that the model does not have, or no MoE layer among them.
        """
        wrong = sorted(set(layer_ids) - set(range(self.n_layers)))
        if wrong:
            raise ValueError(f"layer {wrong[0]} is no hidden layer of {self.name}")
        number_of = {layer: index for index, layer in enumerate(layer_ids)}
        moe = tuple(number_of[layer] for layer in self.moe_layer_ids if layer in number_of)
        if not moe:
            raise ValueError(f"layers {layer_ids} of {self.name}: there is no MoE layer among them")
        return self._only(
            layer_ids,
            name=f"{len(layer_ids)} of the {self.n_layers} layers of {self.name}",
            moe_layer_ids=moe,
            no_mlp_layers=tuple(number_of[layer] for layer in self.no_mlp_layers if layer in number_of),
        )

    def _only(self, layer_ids: tuple[int, ...], **changes: Any) -> ModelShape:
        """Keep the attention of some hidden layers, numbered anew, as a part of the model that the name is of."""
        number_of = {layer: index for index, layer in enumerate(layer_ids)}
        own = [self.mixer_of_layer[layer] for layer in layer_ids] if self.mixer_of_layer else ()
        return replace(
            self,
            n_layers=len(layer_ids),
            attention=self.attention.renumbered(number_of),
            more_attention=tuple(
                mixer.renumbered(number_of) if isinstance(mixer, AttentionShape) else mixer
                for mixer in self.more_attention
            ),
            mixer_of_layer=tuple(own),
            named_shape=self.named_shape or self.shape_LEK,
            **changes,
        )

    def with_types(
        self, *, weight_type: str | None = None, dense_type: str | None = None, kv_type: str | None = None
    ) -> ModelShape:
        """Copy with other element types of the routed experts, of the other matrices, and of the KV cache.

        Raises
        ------
        ValueError
            There is no such type.
        """
        return replace(
            self,
            weight_type=weight_type or self.weight_type,
            dense_type=dense_type or self.dense_type,
            attention_type=dense_type or self.attention_type,
            kv_type=kv_type or self.kv_type,
        )

    def with_dims(self, other: ModelShape) -> ModelShape:
        """Keep the L, E, K and layer ids, and take the widths, attention and element types of `other`."""
        return other.with_routing(
            self.name, layers=self.layers, experts=self.experts, choices=self.choices, layer_ids=self.moe_layer_ids
        )

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert: gate (where there is one), up and down."""
        return self.mlp_matrices * self.expert_width * self.expert_intermediate

    @property
    def mlp_matrices(self) -> int:
        """Matrices of an MLP or expert."""
        return 3 if self.gated else 2

    @property
    def expert_width(self) -> int:
        """Width in which the routed experts work, and in which tokens are dispatched."""
        return self.expert_hidden or self.hidden

    @property
    def latent_parameters(self) -> int:
        """Weights that bring one layer's tokens into the width of latent experts and back."""
        return 2 * self.hidden * self.expert_hidden

    @property
    def expert_bytes(self) -> int:
        """Bytes of one routed expert's weights."""
        return round(self.expert_parameters * element_types.weight_bytes(self.weight_type))

    @property
    def shared_parameters(self) -> int:
        """Weights of one layer's shared experts."""
        return self.mlp_matrices * self.hidden * self.shared_intermediate

    @property
    def dense_parameters(self) -> int:
        """Weights of one dense layer's MLP."""
        return self.mlp_matrices * self.hidden * self.dense_intermediate

    @property
    def router_parameters(self) -> int:
        """Weights of one layer's router."""
        return self.hidden * self.experts

    def mixer_parameters(self, layer_id: int) -> int:
        """Weights of a hidden layer's attention, or of what stands in its place."""
        mixer = self.mixer_of(layer_id)
        return 0 if mixer is None else mixer.parameters(self.hidden)

    def parameters_by_part(self) -> tuple[Parameters, ...]:
        """All weights but biases, norms inside attention (under 0.1 %) and multi-token prediction."""
        dense, mixers = self.dense_type, sum(map(self.mixer_parameters, range(self.n_layers)))
        matrices = 1 if self.tied_embedding else 2
        return (
            Parameters("routed experts", self.layers * self.experts * self.expert_parameters, self.weight_type),
            Parameters("shared experts", self.layers * self.shared_parameters, dense),
            Parameters("latent projections", self.layers * self.latent_parameters, dense),
            Parameters("dense layers", len(self.dense_layer_ids) * self.dense_parameters, dense),
            Parameters("attention", mixers, self.mixer_type),
            Parameters("routers", self.layers * self.router_parameters, CONTROL_TYPE),
            Parameters("norms", (2 * self.n_layers + 1) * self.hidden, CONTROL_TYPE),
            Parameters("embedding, LM head", matrices * self.vocab * self.hidden, CONTROL_TYPE),
        )

    def total_parameters(self) -> int:
        """Count all of them."""
        return sum(part.count for part in self.parameters_by_part())

    def active_parameters(self, *, embedding: bool = True) -> int:
        """Count the weights that one token meets, K experts of each layer; with `embedding`, that matrix too."""
        idle = self.layers * (self.experts - self.choices) * self.expert_parameters
        looked_up = 0 if embedding or self.tied_embedding else self.vocab * self.hidden
        return self.total_parameters() - idle - looked_up

    def copy_bytes(self, element_type: str) -> int:
        """Bytes of one dispatched token copy: the hidden vector with its scales, and 16 bytes of metadata."""
        return element_types.row_bytes(element_type, self.expert_width) + element_types.COPY_METADATA_BYTES

    @property
    def dispatch_type(self) -> str:
        """Element type in which engines dispatch by default: what the experts multiply, FP8 or else bf16."""
        return "fp8" if self.weight_type == "fp8" else "bf16"

    def kv_bytes_of(self, layer_id: int) -> int:
        """Bytes that one token adds to a hidden layer's KV cache.

        0 where the layer keeps a state, or nothing.

        Of compressed keys a token adds its share of one.
        """
        mixer = self.mixer_of(layer_id)
        if not isinstance(mixer, AttentionShape):
            return 0
        return -(-self.cached_bytes(mixer.kv_width) // max(mixer.compress, 1))

    def cached_bytes(self, width: int) -> int:
        """Bytes of so many elements in the KV cache."""
        return element_types.cache_bytes(self.kv_type, width)

    def state_bytes_of(self, layer_id: int) -> int:
        """Bytes that one sequence keeps at a hidden layer whatever its length: float32, as engines keep states."""
        mixer = self.mixer_of(layer_id)
        return STATE_BYTES * mixer.state_elements if isinstance(mixer, LinearAttention) else 0

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token adds to the KV cache of a layer with the model's own attention."""
        return element_types.cache_bytes(self.kv_type, self.attention.kv_width)
