"""What a user tells an importer that the file to import does not say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from moecast.traces.meta import PHASES


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """Facts about a foreign trace; None where not known.

    Parameters
    ----------
    model
        The model's name; by default the file's.
    phase
        The phase that all tokens are of.
    experts
        E; without it the importer takes it from the data and says so in the notes.
    config, layer_ids
        The model's raw `config.json` and the MoE layers' positions.
    source, notes
        Added to the metadata.
    limit_bytes
        Most memory the unpacked arrays may take; by default a quarter of what is free.
    progress
        Called with (bytes unpacked, bytes in all).

    Raises
    ------
    ValueError
        A phase that does not exist.
    """

    model: str | None = None
    phase: str = "prefill"
    experts: int | None = None
    config: Mapping[str, Any] | None = None
    layer_ids: tuple[int, ...] | None = None
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: str = ""
    limit_bytes: int | None = None
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"phase = {self.phase!r}: must be one of {', '.join(PHASES)}")
