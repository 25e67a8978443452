"""A shape of routing, written ``58x256x8``: MoE layers, experts, choices."""

from __future__ import annotations

import dataclasses
import re

from moecast.errors import MoecastError
from moecast.traces.meta import MAX_CHOICES, MAX_EXPERTS, MAX_LAYERS


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """L, E and K of a trace.

    Raises
    ------
    MoecastError
        A number out of range, or more choices than experts.
    """

    layers: int
    experts: int
    choices: int

    def __post_init__(self) -> None:
        for name, most in (("layers", MAX_LAYERS), ("experts", MAX_EXPERTS), ("choices", MAX_CHOICES)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                rule = f"must be a whole number from 1 to {most}"
                raise MoecastError(rule, field=f"shape.{name}", value=value)
        if self.choices > self.experts:
            raise MoecastError(
                f"a token cannot choose more than the {self.experts} experts", field="shape.choices", value=self.choices
            )

    def __str__(self) -> str:
        """The shape as `parse_shape` reads it."""
        return f"{self.layers}x{self.experts}x{self.choices}"


def parse_shape(text: str) -> Shape:
    """Read ``58x256x8``.

    Raises
    ------
    MoecastError
        Not three whole numbers, or numbers that no trace has.
    """
    found = re.fullmatch(r"\s*(\d{1,9})[x×](\d{1,9})[x×](\d{1,9})\s*", text, flags=re.ASCII)
    if not found:
        rule = "layers x experts x choices, such as 58x256x8"
        raise MoecastError(rule, field="shape", value=text)
    layers, experts, choices = (int(number) for number in found.groups())
    return Shape(layers=layers, experts=experts, choices=choices)
