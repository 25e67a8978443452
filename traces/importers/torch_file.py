"""Files of `torch.save`, read without torch: a zip of uncompressed records, ``data.pkl`` and one record per storage.

Layout: torch/serialization.py (PyTorch 1.6 and later): ``NAME/data.pkl``, ``NAME/data/0`` and so
on, ``NAME/byteorder``. Records must be stored as they are, so that nothing unpacks to more than the
file's own size. Tensors are read when asked for, one at a time.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.importers.archive import open_archive, zip_names
from moecast.traces.importers.torch_pickle import RefusedPickleError, TensorView, read_pickle

_PICKLE = "/data.pkl"
_PICKLE_TIMES = 64  # what a byte of pickle may take in memory: an empty dict
_LEGACY = (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e", b"\x80\x02", b"\x80\x04")


def looks_like_torch(path: Path) -> bool:
    """Whether a file is a zip with a pickle in it, or a `torch.save` of before PyTorch 1.6."""
    if any(name.endswith(_PICKLE) for name in zip_names(path)):
        return True
    return _is_legacy(path)


@contextmanager
def open_torch(path: Path, *, limit_bytes: int) -> Iterator[TorchFile]:
    """Open a file of `torch.save`.

    Raises
    ------
    MoecastError
        Missing, damaged, of the old layout, too large, or a pickle that does more than hold
        tensors.
    """
    if path.is_file() and _is_legacy(path):
        rule = (
            "a bare pickle, as torch.save wrote before PyTorch 1.6: it is not read; where you "
            "trust it, save it again with torch.save(torch.load(file, weights_only=True), file)"
        )
        raise MoecastError(rule, file=path)
    with open_archive(path, "file of torch.save") as archive:
        yield TorchFile(path, archive, limit_bytes)


class TorchFile:
    """An open file: `value` is what was saved, with a `TensorView` for each tensor.

    Parameters
    ----------
    path, archive
        The file.
    limit_bytes
        Most memory that the pickle, or a tensor, may take.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, limit_bytes: int) -> None:
        self._path, self._archive, self._limit_bytes = path, archive, limit_bytes
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in self._entries if name.endswith(_PICKLE) and name.count("/") == 1]
        if len(pickles) != 1 or len(self._entries) != len(archive.infolist()):
            raise MoecastError("not a file of torch.save: it must hold one data.pkl", file=path)
        self._check_records()
        self._prefix = pickles[0].removesuffix(_PICKLE)
        entry = self._entries[pickles[0]]
        if entry.file_size * _PICKLE_TIMES > limit_bytes:
            rule = f"its pickle takes {entry.file_size >> 20} MiB, more than there is memory to read it in"
            raise MoecastError(rule, file=path)
        order = self._entries.get(f"{self._prefix}/byteorder")
        if order is not None and order.file_size <= 16 and archive.read(order).strip() != b"little":
            raise MoecastError("saved on a big-endian machine, which is not read", file=path)
        try:
            self.value: Any = read_pickle(archive.read(entry))
        except RefusedPickleError as error:
            raise MoecastError(
                f"its pickle is not plain tensors ({error}); nothing of it was run", file=path
            ) from error

    def read(self, tensor: Any, where: str, axes: int) -> npt.NDArray[Any]:
        """Read a tensor of whole numbers.

        Raises
        ------
        MoecastError
            No such tensor, or sizes that are not those of its storage.
        """
        if type(tensor) is not TensorView:
            raise MoecastError("is not a tensor", file=self._path, field=where)
        dtype, shape = np.dtype(tensor.storage.dtype), tensor.shape
        if dtype.kind not in "iu" or len(shape) != axes:
            rule = f"must be a tensor of whole numbers with {axes} axes, not {dtype} {list(shape)}"
            raise MoecastError(rule, file=self._path, field=where)
        entry = self._entries.get(f"{self._prefix}/data/{tensor.storage.key}")
        if entry is None or entry.file_size != tensor.storage.elements * dtype.itemsize:
            raise MoecastError("its storage is missing or of another size", file=self._path, field=where)
        if 0 in shape:
            return np.zeros(shape, dtype)
        last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, tensor.strides, strict=True))
        if last >= tensor.storage.elements:
            raise MoecastError(f"{list(shape)} is larger than its storage", file=self._path, field=where)
        needed = max(math.prod(shape) * dtype.itemsize, entry.file_size)
        if needed > self._limit_bytes:
            rule = f"takes {needed >> 20} MiB, more than the {self._limit_bytes >> 20} MiB allowed"
            raise MoecastError(rule, file=self._path, field=where)
        storage = np.frombuffer(self._archive.read(entry), dtype)
        strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
        view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], shape, strides, writeable=False)
        return view.copy()

    def _check_records(self) -> None:
        for entry in self._entries.values():
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise MoecastError(
                    "not a file of torch.save: a record is compressed", file=self._path, value=entry.filename
                )
        if sum(entry.file_size for entry in self._entries.values()) > self._path.stat().st_size:
            raise MoecastError("its records overlap", file=self._path)


def _is_legacy(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16).startswith(_LEGACY)
    except OSError:
        return False
