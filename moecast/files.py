"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from moecast.errors import MoecastError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it is renamed to `path` at the end, or removed on any error.

    Raises
    ------
    MoecastError
        The folder does not exist or cannot be written.
    """
    path = Path(path)
    check_writable(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def check_writable(path: str | Path) -> None:
    """Fail in one line when a file cannot be made at `path`; called before long work starts.

    Raises
    ------
    MoecastError
        The path is a folder, or its folder is missing or not writable.
    """
    path = Path(path)
    folder = path.parent
    if path.is_dir():
        raise MoecastError("is a folder, name a file", file=path)
    if not folder.is_dir():
        raise MoecastError("the output folder does not exist, make it first", file=folder)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MoecastError("the output folder cannot be written", file=folder) from error


def read_text(path: str | Path, *, limit_bytes: int = 256 << 20) -> str:
    """Read a UTF-8 text file of at most `limit_bytes`.

    Raises
    ------
    MoecastError
        The file is missing, too large, unreadable or not UTF-8.
    """
    path = Path(path)
    try:
        if path.stat().st_size > limit_bytes:
            raise MoecastError(f"larger than {limit_bytes >> 20} MiB, not read", file=path)
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MoecastError("not UTF-8 text", file=path) from error
    except OSError as error:
        raise MoecastError(f"cannot be read ({error.strerror})", file=path) from error
