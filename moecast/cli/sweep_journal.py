"""The journal of a sweep: every finished point on disk at once, so that a killed sweep goes on where it was.

It stands beside the sweep's output, a line of JSON for each point behind a line that says which
sweep it is of. A line is whole or not there: one that was being written when the process was killed
has no end, and is cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from moecast.errors import MoecastError
from moecast.files import read_text

if TYPE_CHECKING:
    from moecast.cli.asked import Asked

SUFFIX = ".points"
MOST_BYTES = 4 << 30


def name_of_sweep(asked: Asked, varied: Mapping[str, Sequence[Any]]) -> str:
    """What a sweep is of: the question, what varies, and the files as they are. SHA-256 in hex."""
    from moecast import __version__

    files = []
    for name, path in sorted(asked.files.items()):
        if path is not None and Path(path).is_file():
            about = Path(path).stat()
            files.append((name, str(path), about.st_size, about.st_mtime_ns))
    fields = {name: str(getattr(asked, name)) for name in asked.__dataclass_fields__ if name not in ("given", "unused")}
    whole = [__version__, fields, {name: list(map(str, values)) for name, values in varied.items()}, files]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


class Journal:
    """The finished points of one sweep; a context within which more are written.

    Parameters
    ----------
    path
        The file; None: points are kept nowhere.
    sweep
        Its `name_of_sweep`.

    Raises
    ------
    MoecastError
        The file is another sweep's, or cannot be read.
    """

    def __init__(self, path: Path | None, sweep: str) -> None:
        self.path, self.finished = path, dict[int, Any]()
        self._file: int | None = None
        self._sweep = sweep
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        text = read_text(path, limit_bytes=MOST_BYTES)
        lines = text.split("\n")[:-1]  # what stands behind the last end of line was not finished
        if not lines:
            return
        try:
            held = [json.loads(line) for line in lines]
        except ValueError as error:
            rule = "is no journal of a sweep: remove it to start anew"
            raise MoecastError(rule, file=path) from error
        if held[0] != {"sweep": self._sweep}:
            rule = "is the journal of another sweep: remove it, or name another output"
            raise MoecastError(rule, file=path)
        self.finished = {one["point"]: one["answer"] for one in held[1:]}
        whole = sum(len(line.encode()) + 1 for line in lines)
        with path.open("r+b") as file:
            file.truncate(whole)

    def __enter__(self) -> Journal:
        if self.path is not None:
            fresh = not self.path.exists() or self.path.stat().st_size == 0 or not self.finished
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if fresh else 0)
            self._file = os.open(self.path, flags, 0o644)
            if fresh:
                self._line({"sweep": self._sweep})
        return self

    def add(self, point: int, answer: Any) -> None:
        """Keep what a point came to; it is on disk when this returns."""
        self.finished[point] = answer
        self._line({"point": point, "answer": answer})

    def _line(self, value: Any) -> None:
        if self._file is None:
            return
        rest = memoryview((json.dumps(value, allow_nan=False) + "\n").encode())
        while rest:
            rest = rest[os.write(self._file, rest) :]
        os.fsync(self._file)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Drop the file: the sweep's outputs hold everything."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
