"""Zip archives of unknown origin: opened only when their directory is of a size to read."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from moecast.errors import MoecastError
from moecast.files import open_regular

MAX_ENTRIES = 65536
_MAX_DIRECTORY_BYTES = 16 << 20  # its entries take about ten times that in memory
_MAX_TEXT = 100
_END = b"PK\x05\x06"
_END_BYTES, _COMMENT_BYTES = 22, 65535

# What zipfile, its decompressors and NumPy's header parser raise on bytes that are not theirs.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    OverflowError,
)


@contextmanager
def open_archive(path: Path, what: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; damage found in it, then or later, becomes one line.

    Parameters
    ----------
    what
        What it should be, as in "not a whole NumPy archive".

    Raises
    ------
    MoecastError
        Missing, damaged, or with an absurd directory.
    """
    try:
        with open_regular(path) as file:
            _check_directory(file, path)
            with zipfile.ZipFile(file) as archive:
                if len(archive.infolist()) > MAX_ENTRIES:
                    raise MoecastError(f"more than {MAX_ENTRIES} entries", file=path)
                yield archive
    except FileNotFoundError as error:
        raise MoecastError("no such file", file=path) from error
    except DAMAGE as error:
        raise MoecastError(f"not a whole {what} ({first_line(error)})", file=path) from error


def zip_names(path: Path) -> list[str]:
    """The entries of a zip archive; none when it cannot be read as one."""
    try:
        with open_archive(path, "archive") as archive:
            return archive.namelist()
    except MoecastError:
        return []


def first_line(error: BaseException) -> str:
    """What an error says, in one short line: some repeat the file's bytes."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def _check_directory(file: IO[bytes], path: Path) -> None:
    """Refuse a directory too large to read, by what the archive's end says of it."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_BYTES - _COMMENT_BYTES - 76))
    tail = file.read()
    at = tail.rfind(_END)
    if at >= 0 and len(tail) - at >= _END_BYTES:
        (directory_bytes,) = struct.unpack_from("<L", tail, at + 12)
        if directory_bytes == 0xFFFFFFFF:
            found = tail.rfind(b"PK\x06\x06", 0, at)
            if found >= 0 and len(tail) - found >= 48:
                (directory_bytes,) = struct.unpack_from("<Q", tail, found + 40)
        if directory_bytes > _MAX_DIRECTORY_BYTES:
            rule = f"its directory takes {directory_bytes >> 20} MiB, more than {_MAX_DIRECTORY_BYTES >> 20} MiB"
            raise MoecastError(rule, file=path)
    file.seek(0)
