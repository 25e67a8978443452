"""NumPy arrays out of bytes of unknown origin: nothing is unpickled, and sizes are checked against what is there."""

from __future__ import annotations

import base64
import binascii
import io
import itertools
import math
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.importers.archive import DAMAGE, first_line

NPY_MAGIC = b"\x93NUMPY"
WHOLE = "iu"
_KIND_WORDS = {"iu": "whole numbers", "iuf": "numbers", "iuU": "whole numbers or text"}


def read_entry(
    archive: zipfile.ZipFile,
    entry: zipfile.ZipInfo,
    path: Path,
    name: str,
    axes: int | tuple[int, ...],
    kinds: str = WHOLE,
) -> npt.NDArray[Any]:
    """Read an ``.npy`` entry: of whole numbers, or of the kinds of elements given (NumPy's letters).

    Raises
    ------
    MoecastError
        Of another kind or number of axes, or another size than its header says.
    """
    with archive.open(entry) as file:
        return _read_npy(file, entry.file_size, path, name, axes, kinds)


def read_npy_file(path: Path, axes: int, *, limit_bytes: int) -> npt.NDArray[Any]:
    """Read an ``.npy`` file of whole numbers.

    Raises
    ------
    MoecastError
        Missing, too large, damaged, or not whole numbers with so many axes.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if size > limit_bytes:
                rule = f"takes {size >> 20} MiB, more than the {limit_bytes >> 20} MiB allowed"
                raise MoecastError(rule, file=path)
            return _read_npy(file, size, path, path.stem, axes)
    except FileNotFoundError as error:
        raise MoecastError("no such file", file=path) from error
    except DAMAGE as error:
        raise MoecastError(f"not a whole NumPy array ({first_line(error)})", file=path) from error


def npy_of_bytes(data: bytes, path: Path, name: str, axes: int) -> npt.NDArray[Any]:
    """Read the bytes of an ``.npy`` file of whole numbers.

    Raises
    ------
    MoecastError
        Damaged, or not whole numbers with so many axes.
    """
    try:
        return _read_npy(io.BytesIO(data), len(data), path, name, axes)
    except DAMAGE as error:
        rule = f"not a whole NumPy array ({first_line(error)})"
        raise MoecastError(rule, file=path, field=name) from error


def bytes_of_base64(text: str, path: Path, name: str) -> bytes:
    """Decode base64.

    Raises
    ------
    MoecastError
        It is not.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MoecastError("not base64", file=path, field=name) from error


def array_of_lists(value: Any, axes: int, path: Path, name: str) -> npt.NDArray[np.int64]:
    """Make an array of lists in lists that hold whole numbers only.

    Raises
    ------
    MoecastError
        Anything else, or lists of different lengths.
    """
    shape: list[int] = []
    level = [value]
    for _ in range(axes):
        lengths = {len(part) if type(part) is list else -1 for part in level}
        if len(lengths) > 1 or -1 in lengths:
            rule = f"must be lists of equal lengths, {axes} deep" if axes > 1 else "must be a list of whole numbers"
            raise MoecastError(rule, file=path, field=name)
        shape.append(lengths.pop() if lengths else 0)
        level = list(itertools.chain.from_iterable(level))
    if set(map(type, level)) - {int}:
        raise MoecastError("must hold whole numbers only", file=path, field=name)
    try:
        return np.array(level, np.int64).reshape(shape)
    except OverflowError as error:
        raise MoecastError("a number of more than 64 bits", file=path, field=name) from error


def _read_npy(
    file: IO[bytes], size: int, path: Path, name: str, axes: int | tuple[int, ...], kinds: str = WHOLE
) -> npt.NDArray[Any]:
    shape, fortran, dtype = _header(file, path, name)
    allowed = (axes,) if isinstance(axes, int) else axes
    if dtype.kind not in kinds or len(shape) not in allowed:
        numbers = " or ".join(map(str, allowed))
        rule = f"must be an array of {_KIND_WORDS[kinds]} with {numbers} axes, not {dtype} {list(shape)}"
        raise MoecastError(rule, file=path, field=name)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise MoecastError(f"its header says {list(shape)} {dtype}, its size differs", file=path, field=name)
    flat = np.frombuffer(file.read(), dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _header(file: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers of Python 2, odd escapes: the size check decides
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(file)
    rule = f"NumPy array format {version} holds no plain numbers"
    raise MoecastError(rule, file=path, field=name)
