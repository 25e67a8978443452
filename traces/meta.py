"""What a routing trace says about itself, and the words and limits of the format."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

PHASES = ("train", "prefill", "decode")
NO_CHOICE = 65535
"""The expert id of an empty choice: a dropped token, a null expert, a skipped layer."""

# Far above any model; they keep a hostile file from asking for huge tables.
MAX_EXPERTS = NO_CHOICE
MAX_LAYERS = 1024
MAX_CHOICES = 1024
MAX_RANKS = 65535  # with one number left in 16 bits for none
MAX_TOPICS = 2**15 - 1  # numbered in 16 bits with a sign


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TraceMeta:
    """What a trace says about itself: the model, its sizes, and where the routing was recorded.

    Parameters
    ----------
    model
        The model's name, free text.
    layers, experts, choices
        L, E and K: MoE layers, routed experts per layer, and the most choices a token makes at a
        layer.
    config
        The model's raw `config.json` where known.
    layer_ids
        The MoE layers' positions among the model's hidden layers, rising; None where not known.
    source
        What recorded it: hardware, software and versions, commit, date. JSON values.
    notes
        Free text.

    Raises
    ------
    ValueError
        A size out of range, K larger than E, or layer ids that are not L rising numbers.
    """

    model: str
    layers: int
    experts: int
    choices: int
    config: Mapping[str, Any] | None = None
    layer_ids: tuple[int, ...] | None = None
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: str = ""

    def __post_init__(self) -> None:
        for name, most in (("layers", MAX_LAYERS), ("experts", MAX_EXPERTS), ("choices", MAX_CHOICES)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= most:
                raise ValueError(f"{name} = {value!r}: must be a whole number from 1 to {most}")
            object.__setattr__(self, name, int(value))
        if self.choices > self.experts:
            raise ValueError(f"choices = {self.choices}: a token cannot choose more than the {self.experts} experts")
        if self.layer_ids is not None:
            ids = tuple(int(layer) for layer in self.layer_ids)
            if len(ids) != self.layers or any(b <= a for a, b in zip((-1, *ids), ids, strict=False)):
                raise ValueError(f"layer_ids = {ids}: must be {self.layers} rising numbers, one per MoE layer")
            object.__setattr__(self, "layer_ids", ids)

    @property
    def shape_LEK(self) -> tuple[int, int, int]:
        """(L, E, K), the sizes that must match the model's."""
        return self.layers, self.experts, self.choices
