"""What a model preset is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPreset:
    """The values of a published `config.json` that a ModelShape reads, and who published them.

    Parameters
    ----------
    source
        Publisher and name of the model, and where its parameter counts were published.
    config
        Field names and values as in the file.
    total_parameters, active_parameters, active_with_embedding
        As published, the active ones with or without the embedding matrix; the tests hold the shape
        to them.
    """

    source: str
    config: Mapping[str, Any]
    total_parameters: float
    active_parameters: float
    active_with_embedding: bool = True
