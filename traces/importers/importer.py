"""What an importer is, and what it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from moecast.traces.importers.options import ImportOptions
from moecast.traces.load_table import LoadTable
from moecast.traces.meta import TraceMeta
from moecast.traces.trace import RoutingTrace


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImportedTrace:
    """A foreign trace that was read once and found good, and can be read again batch by batch.

    Parameters
    ----------
    meta
        Sizes and provenance.
    tokens
        T.
    read
        Yields the tokens in order, in batches as large as the files' own pieces.
    warnings
        What is likely wrong unless the user says more; it stands in the notes too.
    """

    meta: TraceMeta
    tokens: int
    read: Callable[[], Iterator[RoutingTrace]]
    warnings: tuple[str, ...] = ()


class Importer(Protocol):
    """Reads one engine's files; its module's docstring says which, and where their layout is from."""

    @property
    def name(self) -> str:
        """What the command line calls the format."""
        ...

    def recognises(self, path: Path) -> bool:
        """Whether a file or folder looks like this format; cheap, by content, and False for what cannot be read."""
        ...

    def open(self, paths: Sequence[Path], options: ImportOptions) -> ImportedTrace | LoadTable:
        """Check all the files and give their tokens, or their counts where they hold nothing else.

        Raises
        ------
        MoecastError
            Damaged, too large, hostile, or not routing: names the file.
        """
        ...
