"""NumPy archives of routing: `[tokens, layers, choices]` integers per topic, with optional `<topic>_seqlen`.

The archive is untrusted: nothing is unpickled, and no array is allocated before its size, as the zip directory and the
array's own header both give it, is known to fit. Axes: T token, L MoE layer, K choice, Q sequence.
"""

from __future__ import annotations

import hashlib
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.importers.options import ImportOptions
from moecast.traces.limits import available_bytes
from moecast.traces.meta import MAX_CHOICES, MAX_EXPERTS, MAX_LAYERS, NO_CHOICE, PHASES, TraceMeta
from moecast.traces.trace import RoutingTrace, concatenate

_LENGTHS = "_seqlen"
_MAX_ARRAYS = 65536
# What zipfile, its decompressors and NumPy's header parser raise on bytes that are not theirs.
_DAMAGE = (
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


class NpzImporter:
    """Reads `.npz` archives as published with some models' routing studies."""

    name = "npz"

    def recognises(self, path: Path) -> bool:
        """Whether the file is a zip archive named `.npz`."""
        return path.suffix == ".npz"

    def read(self, path: Path, options: ImportOptions) -> RoutingTrace:
        """Read the archive's topics one after the other, in the archive's order.

        Raises
        ------
        MoecastError
            Damaged, pickled, too large, or arrays that are not routing.
        """
        choices, lengths = _read_archive(path, options)
        shapes = {array.shape[1:] for array in choices.values()}
        if len(shapes) != 1:
            raise MoecastError(f"the topics differ in layers and choices: {sorted(shapes)}", file=path)
        layers, per_layer = shapes.pop()
        highest = max((int(a[a != NO_CHOICE].max(initial=0)) for a in choices.values()), default=0)
        notes = [options.notes] if options.notes else []
        experts = options.experts
        if experts is None:
            experts = max(highest + 1, per_layer)
            notes.append(f"E = {experts} is taken from the highest expert id in {path.name}, which does not say it.")
        if highest >= experts:
            raise MoecastError(f"an expert id outside 0…{experts - 1}", file=path, value=highest)
        unmeasured = [topic for topic in choices if topic not in lengths]
        if unmeasured:
            notes.append(f"Taken as one sequence each, for want of {_LENGTHS}: {', '.join(unmeasured)}.")
        meta = _meta(path, options, (layers, experts, per_layer), " ".join(notes))
        return _assemble(path, choices, lengths, meta, options.phase)


def _meta(path: Path, options: ImportOptions, shape_LEK: tuple[int, int, int], notes: str) -> TraceMeta:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    layers, experts, choices = shape_LEK
    try:
        return TraceMeta(
            model=options.model or path.stem,
            layers=layers,
            experts=experts,
            choices=choices,
            config=options.config,
            layer_ids=options.layer_ids,
            source={"importer": "npz", "file": path.name, "sha256": digest, **options.source},
            notes=notes,
        )
    except ValueError as error:
        raise MoecastError(str(error), file=path) from error


def _assemble(
    path: Path,
    choices: Mapping[str, npt.NDArray[np.uint16]],
    lengths: Mapping[str, npt.NDArray[np.int64]],
    meta: TraceMeta,
    phase: str,
) -> RoutingTrace:
    parts: list[RoutingTrace] = []
    sequences = 0
    for topic, experts_TLK in choices.items():
        tokens = len(experts_TLK)
        length_Q = lengths.get(topic, np.array([tokens] if tokens else [], np.int64))
        start_Q = np.cumsum(length_Q) - length_Q
        sequence_T = np.repeat(np.arange(len(length_Q)), length_Q)
        parts.append(
            RoutingTrace(
                meta=meta,
                experts_TLK=experts_TLK,
                sequence_T=(sequence_T + sequences).astype(np.uint32),
                position_T=(np.arange(tokens) - np.repeat(start_Q, length_Q)).astype(np.uint32),
                phase_T=np.full(tokens, PHASES.index(phase), np.uint8),
                topics=(topic,),
                topic_T=np.zeros(tokens, np.int16),
            )
        )
        _check_repeats(path, topic, parts[-1])
        sequences += len(length_Q)
    return concatenate(parts)


def _check_repeats(path: Path, topic: str, trace: RoutingTrace) -> None:
    from moecast.traces.checks import check_choices  # compiles: not needed to import this module

    try:
        check_choices(trace.experts_TLK, trace.meta.experts)
    except ValueError as error:
        raise MoecastError(str(error), file=path, field=topic) from error


def _read_archive(
    path: Path, options: ImportOptions
) -> tuple[dict[str, npt.NDArray[np.uint16]], dict[str, npt.NDArray[np.int64]]]:
    limit_bytes = available_bytes() // 4 if options.limit_bytes is None else options.limit_bytes
    choices: dict[str, npt.NDArray[np.uint16]] = {}
    lengths: dict[str, npt.NDArray[np.int64]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path, limit_bytes)
            total, done = sum(entry.file_size for entry in members.values()), 0
            for name, entry in members.items():
                if _is_lengths(name, members):
                    continue
                choices[name] = _choices(archive, entry, path, name)
                if name + _LENGTHS in members:
                    lengths[name] = _lengths(archive, members[name + _LENGTHS], path, len(choices[name]))
                done += entry.file_size
                if options.progress:
                    options.progress(done, total)
    except FileNotFoundError as error:
        raise MoecastError("no such file", file=path) from error
    except _DAMAGE as error:
        raise MoecastError(f"not a whole NumPy archive ({_first_line(error)})", file=path) from error
    if not choices:
        raise MoecastError("the archive holds no arrays", file=path)
    return choices, lengths


def _is_lengths(name: str, members: Mapping[str, zipfile.ZipInfo]) -> bool:
    return name.endswith(_LENGTHS) and name.removesuffix(_LENGTHS) in members


def _members(archive: zipfile.ZipFile, path: Path, limit_bytes: int) -> dict[str, zipfile.ZipInfo]:
    entries = archive.infolist()
    if len(entries) > _MAX_ARRAYS:
        raise MoecastError(f"more than {_MAX_ARRAYS} arrays", file=path)
    total = sum(entry.file_size for entry in entries)
    if total > limit_bytes:
        raise MoecastError(f"unpacks to {total >> 20} MiB, more than the {limit_bytes >> 20} MiB allowed", file=path)
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        if name == entry.filename or name in members or not name.isprintable():
            raise MoecastError("every entry must be one .npy array with its own name", file=path, value=entry.filename)
        members[name] = entry
    return members


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, name: str, axes: int) -> npt.NDArray[Any]:
    with archive.open(entry) as file:
        shape, fortran, dtype = _header(file, path, name)
        if dtype.kind not in "iu" or len(shape) != axes:
            rule = f"must be an array of whole numbers with {axes} axes, not {dtype} {list(shape)}"
            raise MoecastError(rule, file=path, field=name)
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
            raise MoecastError(f"its header says {list(shape)} {dtype}, its size differs", file=path, field=name)
        data = file.read()
    flat = np.frombuffer(data, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _header(file: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise MoecastError(f"NumPy array format {version} holds no plain numbers", file=path, field=name)


def _choices(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, name: str) -> npt.NDArray[np.uint16]:
    array_TLK = _read_array(archive, entry, path, name, 3)
    _, layers, choices = array_TLK.shape
    if not (1 <= layers <= MAX_LAYERS and 1 <= choices <= MAX_CHOICES):
        raise MoecastError("must be [tokens, layers, choices]", file=path, field=name, value=array_TLK.shape)
    if array_TLK.size and array_TLK.dtype.kind == "i" and int(array_TLK.min()) < 0:
        if int(array_TLK.min()) < -1:
            raise MoecastError("an expert id below -1", file=path, field=name, value=int(array_TLK.min()))
        array_TLK = np.where(array_TLK == -1, NO_CHOICE, array_TLK.astype(np.int64))
    if array_TLK.size and int(array_TLK.max()) > MAX_EXPERTS:
        raise MoecastError(f"an expert id above {MAX_EXPERTS - 1}", file=path, field=name, value=int(array_TLK.max()))
    return np.ascontiguousarray(array_TLK, np.uint16)


def _lengths(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, tokens: int) -> npt.NDArray[np.int64]:
    name = entry.filename.removesuffix(".npy")
    raw_Q = _read_array(archive, entry, path, name, 1)
    if raw_Q.size and (int(raw_Q.min()) < 1 or int(raw_Q.max()) > tokens):
        raise MoecastError(f"lengths must be from 1 to the topic's {tokens} tokens", file=path, field=name)
    length_Q = raw_Q.astype(np.int64)
    total = int(length_Q.sum())
    if total != tokens:
        raise MoecastError(f"the lengths add up to {total}, the topic has {tokens} tokens", file=path, field=name)
    return length_Q


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def import_npz(
    path: str | Path,
    *,
    model: str | None = None,
    phase: str = "prefill",
    experts: int | None = None,
    config: Mapping[str, Any] | None = None,
    layer_ids: tuple[int, ...] | None = None,
) -> RoutingTrace:
    """Read an `.npz` archive of routing; see `ImportOptions` for the parameters.

    Raises
    ------
    MoecastError
        Damaged, pickled, too large, or arrays that are not routing.
    """
    options = ImportOptions(model=model, phase=phase, experts=experts, config=config, layer_ids=layer_ids)
    return NpzImporter().read(Path(path), options)
