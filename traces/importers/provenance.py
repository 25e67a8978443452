"""Where imported routing comes from: files and their hash, notes, and how far the reading is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.traces.importers.options import ImportOptions

_BLOCK_BYTES = 1 << 20
_LISTED = 8


def size_of(path: Path) -> int:
    """Bytes of a file.

    Raises
    ------
    MoecastError
        It is missing or cannot be read.
    """
    try:
        return path.stat().st_size
    except FileNotFoundError as error:
        raise MoecastError("no such file", file=path) from error
    except OSError as error:
        raise MoecastError(f"cannot be read ({error.strerror})", file=path) from error


def source_of(paths: Sequence[Path], importer: str, engine: str, options: ImportOptions) -> dict[str, Any]:
    """The `source` of the metadata: importer, engine, files, one SHA-256 over all of them, and what the user adds."""
    name = paths[0].name if len(paths) == 1 else f"{len(paths)} files, the first {paths[0].name}"
    source: dict[str, Any] = {"importer": importer, "file": name, "sha256": _digest(paths)}
    return {**source, **({"engine": engine} if engine else {}), **options.source}


def joined_notes(given: str, notes: Sequence[str], remarks: Mapping[str, Mapping[str, None]]) -> str:
    """One text of the user's note, the importer's, and remarks with what they are about."""
    sentences = [f"{sentence}{_about(list(about))}." for sentence, about in remarks.items()]
    return " ".join(filter(None, [given, *notes, *sentences]))


class Reading:
    """Tells how many bytes of the files have been read, over several passes.

    Parameters
    ----------
    paths
        The files, in the order they are read.
    progress
        Told (done, in all); None: nobody is.
    passes, begin
        How often everything is read, and how often it has been.
    """

    def __init__(
        self, paths: Sequence[Path], progress: Callable[[int, int], None] | None, *, passes: int, begin: int = 0
    ) -> None:
        self._progress, self._passes, self._pass = progress, passes, begin
        self._end = 0
        self._before: dict[Path, tuple[int, int]] = {}
        for path in paths:
            size = size_of(path)
            self._before.setdefault(path, (self._end, size))
            self._end += size
        self._told = 0

    def advance(self, path: Path, part: float) -> None:
        """Say that a part (0 to 1) of a file is read, and all files before it."""
        before, size = self._before.get(path, (self._end, 0))
        self._tell(self._pass * self._end + before + int(size * min(part, 1.0)))

    def next_pass(self) -> None:
        """Say that everything is read once more."""
        self._pass += 1
        self._tell(self._pass * self._end)

    def _tell(self, done: int) -> None:
        self._told = max(self._told, done)
        if self._progress is not None:
            self._progress(self._told, self._passes * self._end)


def _about(what: list[str]) -> str:
    named = [text for text in what if text]
    if not named:
        return ""
    more = f" and {len(named) - _LISTED} more" if len(named) > _LISTED else ""
    return ": " + ", ".join(named[:_LISTED]) + more


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
        except OSError as error:
            raise MoecastError(f"cannot be read ({error.strerror})", file=path) from error
    return digest.hexdigest()
