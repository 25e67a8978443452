"""Importers of routing recorded elsewhere. To add one: a file here, an entry in `IMPORTERS`, a row in the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from moecast.errors import MoecastError
from moecast.traces.importers.npz import NpzImporter
from moecast.traces.importers.options import ImportOptions
from moecast.traces.trace import RoutingTrace

__all__ = ["IMPORTERS", "ImportOptions", "Importer", "import_trace"]


class Importer(Protocol):
    """Reads one foreign format."""

    @property
    def name(self) -> str:
        """Format name."""
        ...

    def recognises(self, path: Path) -> bool:
        """Whether the file is of this format, judged by its name."""
        ...

    def read(self, path: Path, options: ImportOptions) -> RoutingTrace:
        """Read the whole trace, or raise a MoecastError."""
        ...


IMPORTERS: tuple[Importer, ...] = (NpzImporter(),)


def import_trace(path: str | Path, options: ImportOptions | None = None) -> RoutingTrace:
    """Read a foreign file with the importer that recognises it.

    Raises
    ------
    MoecastError
        No importer recognises the file, or it breaks its format's rules.
    """
    path = Path(path)
    for importer in IMPORTERS:
        if importer.recognises(path):
            return importer.read(path, options or ImportOptions())
    known = ", ".join(importer.name for importer in IMPORTERS)
    raise MoecastError(f"no importer knows this file; there are: {known}", file=path)
