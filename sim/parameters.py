"""The weights of a model, by part: how many, and of which element type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moecast.sim import element_types

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape

CONTROL_TYPE = "bf16"
"""Of routers, norms, embedding and LM head, whatever a checkpoint quantises."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """The weights of one part."""

    part: str
    count: int
    element_type: str

    @property
    def bytes(self) -> int:
        """What they take in memory, their scales included."""
        return round(self.count * element_types.weight_bytes(self.element_type))


def parameters_by_part(model: ModelShape) -> tuple[Parameters, ...]:
    """All weights of a model but biases, norms inside attention (under 0.1 %) and multi-token prediction."""
    dense, mixers = model.dense_type, sum(map(model.mixer_parameters, range(model.n_layers)))
    matrices = 1 if model.tied_embedding else 2
    return (
        Parameters("routed experts", model.layers * model.experts * model.expert_parameters, model.weight_type),
        Parameters("shared experts", model.layers * model.shared_parameters, dense),
        Parameters("latent projections", model.layers * model.latent_parameters, dense),
        Parameters("dense layers", len(model.dense_layer_ids) * model.dense_parameters, dense),
        Parameters("attention", mixers, model.mixer_type),
        Parameters("routers", model.layers * model.router_parameters, CONTROL_TYPE),
        Parameters("norms", (2 * model.n_layers + 1) * model.hidden, CONTROL_TYPE),
        Parameters("embedding, LM head", matrices * model.vocab * model.hidden, CONTROL_TYPE),
    )
