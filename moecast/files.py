"""Files written whole or not at all, and read with a limit: regular ones only."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from moecast.errors import MoecastError

DEFAULT_LIMIT_BYTES = 256 << 20

_PART = ".part"
_NAME_CHARS = 100  # of a file's name in its part's: file systems take 255 bytes
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to.

    It is renamed to `path` at the end, or removed on any error.

    A symlink is followed: what it leads to is replaced. Parts that killed runs left for the same
    file are cleared.

    Raises
    ------
    MoecastError
        See `check_writable`; or the disk is full.
    """
    asked, path = Path(path), Path(os.path.realpath(path))
    check_writable(path)
    prefix = f".{path.name[:_NAME_CHARS]}.{_host()}-"
    _clear_stale(path.parent, prefix)
    handle, name = tempfile.mkstemp(prefix=f"{prefix}{os.getpid()}-", suffix=_PART, dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            rule = f"could not be written ({os.strerror(error.errno or 0)}); nothing of it is left"
            raise MoecastError(rule, file=asked) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _host() -> str:
    return "".join(char for char in socket.gethostname() if char.isalnum())[:32] or "host"


def _clear_stale(folder: Path, prefix: str) -> None:
    """Remove parts of the same file by processes of this machine that are no longer there."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if not (entry.name.startswith(prefix) and entry.name.endswith(_PART)):
                continue
            pid = entry.name.removeprefix(prefix).partition("-")[0]
            if pid.isascii() and pid.isdigit() and not _runs(int(pid)):
                entry.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no pid at all: not ours to clear
        return True
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def check_writable(path: str | Path) -> None:
    """Fail in one line when a file cannot be made at `path`; called before long work starts.

    Raises
    ------
    MoecastError
        The path is a folder, a pipe or a device, or its folder is missing or not writable.
    """
    asked, path = Path(path), Path(os.path.realpath(path))
    folder = path.parent
    try:
        _refuse_special(os.stat(path).st_mode, asked, "is a pipe, a device or a socket: name a regular file")  # noqa: PTH116
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise MoecastError(f"cannot be written ({error.strerror})", file=asked) from error
    if not folder.is_dir():
        raise MoecastError("the output folder does not exist, make it first", file=folder)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MoecastError("the output folder cannot be written", file=folder) from error


def check_outputs(outputs: Mapping[str, str | Path | None], inputs: Mapping[str, str | Path | None]) -> None:
    """Fail in one line, before any work, where an output cannot be made or would replace an input or another output.

    Parameters
    ----------
    outputs, inputs
        What the user calls each (``--out``) and where it is; None: not asked for. A name of a
        preset is no file, and does no harm here.

    Raises
    ------
    MoecastError
        See `check_apart` and `check_writable`.
    """
    check_apart(outputs, inputs)
    for path in outputs.values():
        if path is not None:
            check_writable(path)


def check_apart(outputs: Mapping[str, str | Path | None], inputs: Mapping[str, str | Path | None]) -> None:
    """Fail in one line where an output would replace an input or another output.

    Raises
    ------
    MoecastError
        Two are one file, by whatever names.
    """
    known = {name: Path(path) for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        for other, taken in known.items():
            if same_file(path, taken):
                rule = f"is the same file as {other}, which it would replace: name another"
                raise MoecastError(rule, file=path, field=name)
        known[name] = Path(path)


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to one file, or would: by name, symlink or hard link."""
    with contextlib.suppress(OSError):
        if os.path.samefile(one, other):  # noqa: PTH121 - of a text or a path alike
            return True
    return os.path.realpath(one) == os.path.realpath(other)


def read_bytes(path: str | Path, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> bytes:
    """Read a regular file of at most `limit_bytes`: no more is ever read, whatever the file says of its size.

    Raises
    ------
    MoecastError
        The file is missing, unreadable, too large, or a pipe, a device or a folder.
    """
    try:
        with open_regular(path) as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise MoecastError(f"cannot be read ({error.strerror})", file=path) from error
    except MemoryError as error:
        raise MoecastError("does not fit into this machine's memory", file=path) from error
    if len(data) > limit_bytes:
        raise MoecastError(f"larger than {limit_bytes >> 20} MiB, not read", file=path)
    return data


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file to read.

    A pipe without a writer does not block, since it is not waited for.

    Raises
    ------
    MoecastError
        It is a pipe, a device, a socket or a folder.
    OSError
        It cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse_special(os.fstat(handle).st_mode, path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_regular(path: str | Path) -> None:
    """Fail in one line where a library would open what is no regular file by its name.

    Raises
    ------
    MoecastError
        The file is missing, or a pipe, a device, a socket or a folder.
    """
    try:
        _refuse_special(os.stat(path).st_mode, path)  # noqa: PTH116 - of a text or a path alike
    except OSError as error:
        raise MoecastError(f"cannot be read ({error.strerror})", file=path) from error


def _refuse_special(
    mode: int,
    path: str | Path,
    rule: str = "is a pipe, a device or a socket; copy what it gives into a regular file",
) -> None:
    if stat.S_ISDIR(mode):
        raise MoecastError("is a folder, name a file", file=path)
    if not stat.S_ISREG(mode):
        raise MoecastError(rule, file=path)


def read_text(path: str | Path, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> str:
    """Read a UTF-8 text file of at most `limit_bytes`.

    Raises
    ------
    MoecastError
        The file is missing, too large, unreadable, no regular file or not UTF-8.
    """
    try:
        return read_bytes(path, limit_bytes=limit_bytes).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise MoecastError("not UTF-8 text", file=path) from error


def read_json(path: str | Path, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> Any:
    """Read a JSON file, strictly.

    Raises
    ------
    MoecastError
        As `read_text`; not JSON, nested too deep, a key that stands twice in one object, or a
        number that JSON does not have (NaN, Infinity) or that has thousands of digits.
    """
    return parse_json(read_text(path, limit_bytes=limit_bytes), file=path)


def parse_json(text: str, *, file: str | Path | None = None) -> Any:
    """Parse JSON text, as strictly as `read_json`.

    Raises
    ------
    MoecastError
        See `read_json`.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise MoecastError(f"not JSON (line {error.lineno}: {error.msg})", file=file) from error
    except RecursionError as error:
        raise MoecastError("not JSON that can be read: nested too deep", file=file) from error
    except ValueError as error:  # a whole number of thousands of digits, and the two hooks
        raise MoecastError(f"not JSON that can be read: {error}", file=file) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
