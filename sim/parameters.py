"""The weights of a model, by part: how many, and of which element type."""

from __future__ import annotations

from dataclasses import dataclass

from moecast.sim import element_types

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
