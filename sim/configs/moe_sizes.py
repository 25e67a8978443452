"""Which layers of a model are MoE layers, of how many experts and choices: all that an import has to know of a model.

Read by the names that families use in a `config.json`, so that routing can be imported from a model
whose shape cannot be priced. Axes: L MoE layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.sim.configs.config import CHOICES, EXPERTS
from moecast.sim.configs.layers import SAID_BY, hidden_layers, moe_layers
from moecast.sim.configs.reader import Reader
from moecast.sim.model import ModelShape


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
        """Read a raw `config.json`.

        A trace holds the layers that its source recorded: where the config of a class that is not
        known says nothing of dense layers, all of them are taken for MoE layers, and the import
        compares their count.

        Raises
        ------
        MoecastError
            A field that is missing or wrong.
        """
        reader = Reader(config, file)
        layers = hidden_layers(reader)
        try:
            ids = moe_layers(reader, layers)
        except MoecastError:
            if reader.known or reader.first(SAID_BY) is not None:
                raise
            ids = tuple(range(layers))
        return cls(
            name=name,
            experts=reader.whole(EXPERTS),
            choices=reader.whole(CHOICES),
            n_layers=layers,
            moe_layer_ids=ids,
        )
