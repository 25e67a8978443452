"""Element types of a training step: what its GEMMs multiply, and in what weights, gradients and moments are kept.

Sources: mixed precision with float32 master weights and gradients (Megatron-LM's distributed
optimizer); FP8 training as in DeepSeek-V3's report (arXiv 2412.19437, 3.3): the three GEMMs of each
linear layer and of the experts multiply FP8, their inputs are cached in FP8 for the weight
gradient, embedding, LM head, router, norms and attention's core stay bf16, and moments are bf16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moecast.sim import element_types
from moecast.sim.model import ModelShape

GEMM_TYPES = ("bf16", "fp8")
KEPT_BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2}


def _check_among(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{field} = {value!r}: one of {', '.join(allowed)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The element types of one training recipe.

    Parameters
    ----------
    name
        What outputs call it.
    forward, input_gradient, weight_gradient
        What the GEMMs of linear layers and experts multiply in each of their three passes: bf16 or
        fp8.
    weights
        Element type of the weights that the GEMMs read.
    gradients, master, moments
        In what gradients are summed and reduced, master weights are kept, and each of the
        optimizer's moments.

    Raises
    ------
    ValueError
        An element type that the field cannot have.
    """

    name: str = "bf16"
    forward: str = "bf16"
    input_gradient: str = "bf16"
    weight_gradient: str = "bf16"
    weights: str = "bf16"
    gradients: str = "fp32"
    master: str = "fp32"
    moments: str = "fp32"

    def __post_init__(self) -> None:
        """Check that each type is one that the field can have."""
        for field in ("forward", "input_gradient", "weight_gradient", "weights"):
            _check_among(field, getattr(self, field), GEMM_TYPES)
        for field in ("gradients", "master", "moments"):
            _check_among(field, getattr(self, field), tuple(KEPT_BYTES))

    @property
    def gradient_bytes(self) -> int:
        """Bytes of an element of the gradients."""
        return KEPT_BYTES[self.gradients]

    @property
    def weight_bytes(self) -> float:
        """Bytes of a weight as the GEMMs read it."""
        return element_types.weight_bytes(self.weights)

    @property
    def master_bytes(self) -> int:
        """Bytes of a master weight."""
        return KEPT_BYTES[self.master]

    @property
    def moment_bytes(self) -> int:
        """Bytes of an element of one moment."""
        return KEPT_BYTES[self.moments]

    def kept_bytes(self, width: int) -> int:
        """Bytes of a row that is kept as the input of a GEMM for its weight gradient."""
        return element_types.row_bytes(self.weight_gradient, width)

    def of(self, model: ModelShape) -> ModelShape:
        """The model as this recipe trains it: its matrices multiply `forward`, keys and values are bf16."""
        return model.with_types(weight_type=self.forward, dense_type=self.forward, kv_type="bf16")


BF16 = Precision()
FP8 = Precision(name="fp8", forward="fp8", input_gradient="fp8", weight_gradient="fp8", weights="fp8", moments="bf16")
PRECISIONS: Mapping[str, Precision] = {recipe.name: recipe for recipe in (BF16, FP8)}
