"""What a user tells an importer that the files to import do not say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from moecast.traces.limits import available_bytes
from moecast.traces.meta import PHASES


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """Facts about foreign files; None where not known.

    Parameters
    ----------
    model
        The model's name; by default the first file's.
    phase
        The phase of tokens whose phase the files do not say; None: what the format is usually
        recorded in.
    experts, choices
        E and K; without E the importer takes it from the data and says so in the notes.
    config, hidden_layers, layer_ids
        The model's raw `config.json`, how many hidden layers it has, and which of them are MoE
        layers.
    first_layers
        For each file or folder to import, the model's layer from which its pipeline stage counts:
        joins the stages.
    columns
        For a flat table of an unknown layout: which of its columns holds what, by our names
        (`events.COLUMNS`).
    drop_first, drop_dummies
        Rows to leave out of a trace, see `leave_out`: so many at its start, and runs of equal ones.
    source, notes
        Added to the metadata.
    limit_bytes
        Most memory that what is read at once may take; by default a quarter of what is free.
    progress
        Called with (bytes read, bytes in all); files are read twice, once to check them and once to
        copy.

    Raises
    ------
    ValueError
        A phase that does not exist, or a layer below 0.
    """

    model: str | None = None
    phase: str | None = None
    experts: int | None = None
    choices: int | None = None
    config: Mapping[str, Any] | None = None
    hidden_layers: int | None = None
    layer_ids: tuple[int, ...] | None = None
    first_layers: tuple[int, ...] | None = None
    columns: Mapping[str, str] | None = None
    drop_first: int = 0
    drop_dummies: bool = False
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: str = ""
    limit_bytes: int | None = None
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if self.phase is not None and self.phase not in PHASES:
            raise ValueError(f"phase = {self.phase!r}: must be one of {', '.join(PHASES)}")

        if isinstance(self.drop_first, bool) or not isinstance(self.drop_first, int) or self.drop_first < 0:
            raise ValueError(f"drop_first = {self.drop_first!r}: must be a whole number from 0")
        if self.first_layers is not None and min(self.first_layers, default=0) < 0:
            raise ValueError(f"first_layers = {self.first_layers!r}: layers count from 0")

    @property
    def most_bytes(self) -> int:
        """Most memory that what is read at once may take."""
        return available_bytes() // 4 if self.limit_bytes is None else self.limit_bytes
