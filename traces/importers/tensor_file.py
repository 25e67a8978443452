"""Safetensors files, read without their library: a header of names, types and places, then plain numbers.

Layout: huggingface/safetensors, README (0.5): 8 bytes of header length, a JSON header, the data
without gaps. Tensors are read when asked for, one at a time; places are checked against the file's
size before.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.importers.provenance import size_of

_TYPES = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1"}
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 64 << 20
_MAX_AXES = 8


def looks_like_tensors(path: Path) -> bool:
    """Whether a file begins as a safetensors file does."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            return length <= path.stat().st_size - _LENGTH_BYTES and file.read(1) == b"{"
    except OSError:
        return False


class TensorFile:
    """The names in a safetensors file, and its tensors of whole numbers.

    Parameters
    ----------
    path
        The file.
    limit_bytes
        Most memory that a tensor may take.

    Raises
    ------
    MoecastError
        Missing or damaged.
    """

    def __init__(self, path: Path, *, limit_bytes: int) -> None:
        self._path, self._limit_bytes = path, limit_bytes
        self._size = size_of(path)
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
                if length > min(self._size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
                    rule = "not a whole safetensors file: its header is cut off"
                    raise MoecastError(rule, file=path)
                header = json.loads(file.read(length))
        except OSError as error:
            raise MoecastError(f"cannot be read ({error.strerror})", file=path) from error
        except (ValueError, RecursionError) as error:
            rule = "not a safetensors file: its header is no JSON"
            raise MoecastError(rule, file=path) from error
        if type(header) is not dict:
            raise MoecastError("not a safetensors file: its header is no JSON object", file=path)
        header.pop("__metadata__", None)
        self._entries: dict[str, Any] = header
        self._begin = _LENGTH_BYTES + length

    @property
    def names(self) -> list[str]:
        """The tensors' names, in the header's order."""
        return list(self._entries)

    def read(self, name: str, axes: int) -> npt.NDArray[Any]:
        """Read a tensor of whole numbers.

        Raises
        ------
        MoecastError
            Other numbers, other axes, or a place outside the file.
        """
        entry = self._entries[name]
        described = entry if type(entry) is dict else {}
        kind: Any = described.get("dtype")
        shape: Any = described.get("shape")
        place: Any = described.get("data_offsets")
        if type(kind) is not str or not _are_sizes(shape) or not _are_sizes(place) or len(place) != 2:
            raise MoecastError("its header does not say type, shape and place", file=self._path, field=name)
        if kind not in _TYPES or len(shape) != axes:
            rule = f"must be a tensor of whole numbers with {axes} axes, not {kind:.8} {shape}"
            raise MoecastError(rule, file=self._path, field=name)
        dtype, (begin, end) = np.dtype(_TYPES[kind]), place
        if end - begin != math.prod(shape) * dtype.itemsize or self._begin + end > self._size:
            raise MoecastError("its place and its shape do not fit the file", file=self._path, field=name)
        if end - begin > self._limit_bytes:
            rule = f"takes {(end - begin) >> 20} MiB, more than the {self._limit_bytes >> 20} MiB allowed"
            raise MoecastError(rule, file=self._path, field=name)
        try:
            with self._path.open("rb") as file:
                file.seek(self._begin + begin)
                data = file.read(end - begin)
        except OSError as error:
            raise MoecastError(f"cannot be read ({error.strerror})", file=self._path) from error
        if len(data) != end - begin:
            raise MoecastError("the file ends in it", file=self._path, field=name)
        return np.frombuffer(data, dtype).reshape(shape)


def _are_sizes(value: Any) -> bool:
    return type(value) is list and len(value) <= _MAX_AXES and all(type(n) is int and 0 <= n < 2**48 for n in value)
