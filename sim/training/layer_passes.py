"""Seconds of the modules of a pipeline stage's layers, forward and by gradient, for the tokens of one microbatch.

Axes: G rank of the stage, P slot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.attention_shape import AttentionShape
from moecast.sim.forward import ForwardPass
from moecast.sim.stage_tasks import OUTSIDE
from moecast.sim.training import modules
from moecast.sim.training.context import ContextCore
from moecast.sim.training.passes import Passes
from moecast.sim.training.precision import Precision

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerPasses:
    """What each module costs; layers are the stage's hidden layers, counted from 0.

    Parameters
    ----------
    step
        The microbatch's forward pass under the stage's plan.
    precision
        Of the recipe.
    """

    step: ForwardPass
    precision: Precision

    def shared_core(self, layer: int) -> ContextCore | None:
        """The core of a layer where ranks share sequences; None elsewhere."""
        mixer = self._model.mixer_of(layer)
        if self.step.shared is None or not isinstance(mixer, AttentionShape):
            return None
        ids = self._model.moe_layer_ids
        return ContextCore(
            placed=self.step.placed,
            shared=self.step.shared,
            shape=mixer,
            reads=mixer.reads_of(layer),
            moe=ids.index(layer) if layer in ids else OUTSIDE,
        )

    def goes_round(self, layer: int) -> bool:
        """Whether the core of a layer's attention is computed block by block, as keys go round."""
        core = self.shared_core(layer)
        return core is not None and not core.gathers

    def router(self, layer: int) -> Passes:
        """Scores and choice of experts."""
        return modules.router_passes(self._model, self._hardware, self.step.tokens_at(layer), precision=self.precision)

    def shared_experts(self, layer: int) -> Passes:
        """Experts that every token visits."""
        return modules.shared_expert_passes(
            self._model, self._hardware, self.step.tokens_at(layer), precision=self.precision
        )

    def dense(self, layer: int) -> Passes:
        """The MLP of a layer that is not MoE."""
        return modules.dense_layer_passes(
            self._model, self._hardware, self.step.attended_at(layer), precision=self.precision, tp=self._tp
        )

    def norms(self, layer: int) -> Passes:
        """Both norms."""
        return modules.norm_passes(self._model, self._hardware, self.step.tokens_at(layer))

    def core(self, layer: int) -> Passes | None:
        """The core of attention; None where there is none, or ranks compute it block by block."""
        mixer = self._model.mixer_of(layer)
        if not isinstance(mixer, AttentionShape) or self.goes_round(layer):
            return None
        keys_G, _ = self.step.keys_at(layer)
        return modules.core_passes(
            self._model, self._hardware, self.step.attended_at(layer), keys_G, shape=mixer, tp=self._tp
        )

    def up_projection(self, layer: int) -> Passes | None:
        """Heads out of latent vectors; None where there is no attention."""
        mixer, tokens_G = self._model.mixer_of(layer), self.step.attended_at(layer)
        if not isinstance(mixer, AttentionShape):
            return None
        return modules.up_projection_passes(
            self._model, self._hardware, tokens_G, shape=mixer, precision=self.precision, tp=self._tp
        )

    def expert_activation(self, layer: int) -> Passes:
        """Activations inside the routed experts."""
        rows_G = self.step.traffic.rank_load_LG[self._model.moe_layer_ids.index(layer)]
        return modules.activation_passes(self._model, self._hardware, rows_G, width=self._model.expert_intermediate)

    def dense_activation(self, layer: int) -> Passes:
        """Activations inside the MLP of a layer that is not MoE."""
        tokens_G = self.step.attended_at(layer)
        return modules.activation_passes(self._model, self._hardware, tokens_G, width=self._dense_width)

    def dense_products(self, layer: int) -> Passes:
        """Matrices of that MLP."""
        tokens_G = self.step.attended_at(layer)
        return modules.mlp_passes(
            self._model, self._hardware, tokens_G, width=self._dense_width, precision=self.precision
        )

    def forward_s(self, layer: int, module: str) -> Float:
        """Forward seconds of a module as recomputation names it [G]; nothing where the layer has none."""
        passes = _RECOMPUTED[module](self, layer) if module in _RECOMPUTED else None
        return np.zeros(self.step.placed.sites.n_ranks) if passes is None else passes.forward_G

    def attention(self, layer: int) -> Passes:
        """All of attention with its norms, without the core where that goes round a ring."""
        norms = self.norms(layer)
        mixer = self._model.mixer_of(layer)
        if self.goes_round(layer) and isinstance(mixer, AttentionShape):
            return norms + modules.projection_passes(
                self._model,
                self._hardware,
                self.step.attended_at(layer),
                precision=self.precision,
                shape=mixer,
                tp=self._tp,
            )
        keys_G, scored_G = self.step.keys_at(layer)
        passes = modules.attention_passes(
            self._model,
            self._hardware,
            self.step.attended_at(layer),
            keys_G,
            scored_G=scored_G,
            mixer=mixer,
            precision=self.precision,
            tp=self._tp,
        )
        return passes + norms

    def experts(self, moe: int) -> Passes:
        """The routed experts of an MoE layer, counted among the stage's."""
        load_GP = self.step.traffic.load_LGP[moe].astype(np.int64)
        return modules.expert_passes(
            self._model, self._hardware, load_GP, precision=self.precision, etp=self.step.placed.plan.etp
        )

    def embedding(self) -> Passes:
        """Looking the tokens up."""
        return modules.embedding_passes(self._model, self._hardware, self.step.tokens_at(0), precision=self.precision)

    def head(self) -> Passes:
        """LM head and loss over all tokens."""
        return modules.head_passes(self._model, self._hardware, self.step.attended_at(self._last), tp=self._tp)

    @property
    def _model(self) -> ModelShape:
        return self.step.model

    @property
    def _last(self) -> int:
        return self._model.n_layers - 1

    @property
    def _dense_width(self) -> int:
        return -(-self._model.dense_intermediate // self._tp)

    @property
    def _tp(self) -> int:
        return self.step.placed.plan.tp

    @property
    def _hardware(self) -> Hardware:
        return self.step.placed.sites.cluster.hardware


_RECOMPUTED: dict[str, Callable[[LayerPasses, int], Passes | None]] = {
    "layernorm": LayerPasses.norms,
    "core_attn": LayerPasses.core,
    "mla_up_proj": LayerPasses.up_projection,
    "shared_experts": LayerPasses.shared_experts,
    "moe_act": LayerPasses.expert_activation,
    "mlp_act": LayerPasses.dense_activation,
    "mlp": LayerPasses.dense_products,
}
"""Megatron's names of the modules that may be computed again."""
