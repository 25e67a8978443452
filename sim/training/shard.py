"""What one rank holds of a model in training: layers of its pipeline stage, cut by tensor and expert parallelism.

Megatron's ways: tensor parallelism cuts attention, MLPs, shared experts and vocabulary, and leaves
routers, norms and what makes latent vectors whole on each rank; expert parallelism deals the routed
experts out evenly, and expert tensor parallelism cuts each. Copies stand on `dense_ranks` ranks
(data and context parallel), of experts on `expert_ranks` (expert data parallel).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moecast.sim import attention
from moecast.sim.attention_shape import AttentionShape
from moecast.sim.model import ModelShape

Matrix = tuple[int, int, float]
"""Rows, columns, and how many of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Parameters of one hidden layer (-1: embedding, `n_layers`: last norm and LM head) on one rank.

    Parameters
    ----------
    cut, whole
        Outside the routed experts: those that tensor parallelism cuts, this rank's part; those that
        each rank has.
    experts
        Of the routed experts that the rank holds, its part of each.
    """

    layer: int
    cut: float = 0.0
    whole: float = 0.0
    experts: float = 0.0

    @property
    def dense(self) -> float:
        """All but routed experts."""
        return self.cut + self.whole

    @property
    def total(self) -> float:
        """All of them."""
        return self.cut + self.whole + self.experts


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The part of a model that one rank trains.

    Parameters
    ----------
    model
        The whole model.
    layer_ids
        Hidden layers of the rank's pipeline stages; None: all.
    first, last
        Whether it has the embedding; the last norm and the LM head.
    tp, ep, etp
        Ranks that cut attention, that share a layer's experts, and that cut each expert.
    dense_ranks, expert_ranks
        Ranks that hold the same dense parameters; the same experts.

    Raises
    ------
    ValueError
        A degree below 1, a layer that the model does not have, or experts that `ep` does not
        divide.
    """

    model: ModelShape
    layer_ids: tuple[int, ...] | None = None
    first: bool = True
    last: bool = True
    tp: int = 1
    ep: int = 1
    etp: int = 1
    dense_ranks: int = 1
    expert_ranks: int = 1

    def __post_init__(self) -> None:
        """Check ranges."""
        for field in ("tp", "ep", "etp", "dense_ranks", "expert_ranks"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} = {getattr(self, field)}: must be at least 1")
        if self.model.experts % self.ep:
            raise ValueError(f"ep = {self.ep}: must divide the {self.model.experts} experts")
        if any(not 0 <= layer < self.model.n_layers for layer in self.layers):
            raise ValueError(
                f"layer_ids = {self.layer_ids}: hidden layers of the model, 0 to {self.model.n_layers - 1}"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """The hidden layers."""
        return tuple(range(self.model.n_layers)) if self.layer_ids is None else self.layer_ids

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Those of them that are MoE layers."""
        moe = set(self.model.moe_layer_ids)
        return tuple(layer for layer in self.layers if layer in moe)

    def held(self) -> tuple[Held, ...]:
        """List what the rank holds, in the order of the forward pass."""
        return tuple(self._held())

    def _held(self) -> Iterator[Held]:
        model = self.model
        vocabulary = model.vocab * model.hidden / self.tp
        if self.first:
            yield Held(layer=-1, cut=vocabulary)
        for layer in self.layers:
            yield self._layer(layer)
        if self.last:
            # A tied head on the embedding's own rank is the same matrix; on another rank it is held
            # again.
            tied = model.tied_embedding and self.first
            yield Held(layer=model.n_layers, cut=0.0 if tied else vocabulary, whole=model.hidden)

    def _layer(self, layer: int) -> Held:
        model, whole = self.model, 2.0 * self.model.hidden
        replicated = _replicated(model, layer)
        cut = (model.mixer_parameters(layer) - replicated) / self.tp
        whole += replicated
        if layer in set(model.moe_layer_ids):
            experts = model.experts / self.ep * model.expert_parameters / self.etp
            whole += model.router_parameters + model.latent_parameters
            return Held(layer=layer, cut=cut + model.shared_parameters / self.tp, whole=whole, experts=experts)
        if layer not in set(model.no_mlp_layers):
            cut += model.dense_parameters / self.tp
        return Held(layer=layer, cut=cut, whole=whole)

    def dense_matrices(self) -> tuple[Matrix, ...]:
        """Matrices of attention, MLPs, shared experts and routers on the rank; embedding and head are no such."""
        return tuple(matrix for layer in self.layers for matrix in self._matrices(layer))

    def expert_matrices(self) -> tuple[Matrix, ...]:
        """Matrices of the routed experts on the rank."""
        model = self.model
        inner = -(-model.expert_intermediate // self.etp)
        count = len(self.moe_layers) * model.experts / self.ep * model.mlp_matrices
        return ((model.expert_width, inner, count),) if count else ()

    def _matrices(self, layer: int) -> Iterator[Matrix]:
        model, mixer = self.model, self.model.mixer_of(layer)
        if isinstance(mixer, AttentionShape):
            yield from ((*pair, 1.0) for pair in attention.projection_matrices(model, mixer, tp=self.tp))
        elif mixer is not None:
            yield from ((inner, outer, 1.0 / self.tp) for inner, outer in mixer.projections)
        if layer in set(model.moe_layer_ids):
            yield (model.hidden, model.experts, 1.0)
            width = model.shared_intermediate
        else:
            width = 0 if layer in set(model.no_mlp_layers) else model.dense_intermediate
        if width:
            yield (model.hidden, -(-width // self.tp), float(model.mlp_matrices))


def _replicated(model: ModelShape, layer: int) -> int:
    """Weights of a layer's attention that tensor parallelism leaves whole: MLA's and compressed queries' way down."""
    mixer = model.mixer_of(layer)
    if not isinstance(mixer, AttentionShape):
        return 0
    latent = mixer.kv_rank + mixer.rope_dim if mixer.kind == "mla" else 0
    return model.hidden * (mixer.q_rank + latent)
