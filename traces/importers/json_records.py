"""JSON of unknown origin, record by record: one value to a line, or one document that is a record or a list of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from moecast.errors import MoecastError

_JSON_TIMES = 32  # what a byte of JSON may take in memory: an empty list, a small number
_MOST_BYTES = 512 << 20
_SHOWN = 200
SNIFF_BYTES = 1 << 20
BOM = b"\xef\xbb\xbf"  # what some Windows tools put before UTF-8


class Record(NamedTuple):
    """A record: where it stands (for messages), its value, the part of the file that is read with it, what to note."""

    where: str
    value: dict[str, Any]
    done: float
    remarks: tuple[tuple[str, str], ...] = ()


def json_records(path: Path, *, limit_bytes: int) -> Iterator[Record]:
    """Yield the objects of a file of JSON lines, or of one JSON document, one at a time.

    Raises
    ------
    MoecastError
        Missing, not JSON, not objects, or a line or document that is too large.
    """
    most = min(limit_bytes // _JSON_TIMES, _MOST_BYTES)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.seek(len(BOM) if file.read(len(BOM)) == BOM else 0)
            lines = iter(lambda: _line(file.readline(most + 1), most, path, 1), b"")
            first = next((line for line in lines if line.strip()), b"")
            if not first:
                raise MoecastError("is empty", file=path)
            file.seek(start)
            if _is_document(first):
                yield from _of_document(_line(file.read(most + 1), most, path, 1), path)
                return
            number = 0
            while raw := file.readline(most + 1):
                number += 1
                line = _line(raw, most, path, number)
                if line.strip():
                    where = f"line {number}"
                    yield Record(where, _object(_parsed(line, path, where), path, where), file.tell() / max(size, 1))
    except FileNotFoundError as error:
        raise MoecastError("no such file", file=path) from error
    except OSError as error:
        raise MoecastError(f"cannot be read ({error.strerror})", file=path) from error


def beginning(path: Path) -> bytes:
    """The first and the last bytes of a file, to tell formats apart by; empty when it cannot be read or is no JSON."""
    try:
        with path.open("rb") as file:
            head = file.read(SNIFF_BYTES).removeprefix(BOM)
            if head.lstrip()[:1] not in (b"{", b"["):
                return b""
            file.seek(max(file.tell(), path.stat().st_size - SNIFF_BYTES))
            return head + file.read(SNIFF_BYTES)
    except OSError:
        return b""


def whole_number(value: Any) -> int | None:
    """The value where it is a whole number that is not negative."""
    return value if type(value) is int and 0 <= value < 2**63 else None


def short_text(value: Any) -> str | None:
    """The value where it is text that can be shown, cut to a line."""
    return value[:_SHOWN] if type(value) is str and value.isprintable() else None


def _is_document(first: bytes) -> bool:
    """Whether a file that begins with this line is one document: a list, or an object that goes on."""
    if first.lstrip()[:1] == b"[":
        return True
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return first.strip() == b"{" or first.rstrip().endswith((b",", b"{", b"["))
    return False


def _of_document(data: bytes, path: Path) -> Iterator[Record]:
    value = _parsed(data, path, "")
    if type(value) is not list:
        yield Record("the document", _object(value, path, "the document"), 1.0)
        return
    for number, item in enumerate(value):
        where = f"item {number}"
        yield Record(where, _object(item, path, where), (number + 1) / len(value))


def _line(raw: bytes, most: int, path: Path, number: int) -> bytes:
    if len(raw) > most:
        raise MoecastError(
            f"longer than the {most >> 20} MiB that can be read at once", file=path, field=f"line {number}"
        )
    return raw


def _parsed(data: bytes, path: Path, where: str) -> Any:
    try:
        return json.loads(data)
    except RecursionError as error:
        raise MoecastError("nested too deep", file=path, field=where) from error
    except ValueError as error:
        rule = "not whole JSON: cut off, or no JSON at all"
        raise MoecastError(rule, file=path, field=where) from error


def _object(value: Any, path: Path, where: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise MoecastError("must be a JSON object", file=path, field=where)
    return value
