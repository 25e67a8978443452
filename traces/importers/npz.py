"""NumPy archives of routing: `[tokens, layers, choices]` integers per topic, with optional `<topic>_seqlen`.

The layout of published routing studies: every array is a topic, its rows MoE layers. The archive is
untrusted: nothing is unpickled, and no array is allocated before its size, as the zip directory and
the array's own header both give it, is known to fit. Axes: T token, R layer, K choice, Q sequence.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.importers.archive import open_archive, zip_names
from moecast.traces.importers.arrays import read_entry
from moecast.traces.importers.assemble import Layout, assemble
from moecast.traces.importers.importer import ImportedTrace
from moecast.traces.importers.options import ImportOptions
from moecast.traces.importers.pieces import Piece, one_phase
from moecast.traces.importers.table_layouts import layout_of
from moecast.traces.importers.vllm_names import is_request_name
from moecast.traces.trace import RoutingTrace, concatenate

_LENGTHS = "_seqlen"
_TABLE_COLUMNS = 3  # that many arrays may be a flat table
_LAYOUT = Layout(importer="npz", engine="", rows="moe", keep_empty_tokens=True)


class NpzImporter:
    """Reads `.npz` archives as published with some models' routing studies."""

    name = "npz"

    def recognises(self, path: Path) -> bool:
        """A zip of `.npy` entries, none with the name of a request's routing, that is no table of a known layout."""
        names = zip_names(path)
        if layout_of(names) is not None:
            return False
        arrays = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
        return bool(arrays) and len(arrays) == len(names) and not any(map(is_request_name, arrays))

    def open(self, paths: Sequence[Path], options: ImportOptions) -> ImportedTrace:
        """Take the archives' topics one after the other, in their order."""

        def pieces() -> Iterator[Piece]:
            for path in paths:
                yield from _pieces(path, options)

        return assemble(paths, pieces, _LAYOUT, options)


def _pieces(path: Path, options: ImportOptions) -> Iterator[Piece]:
    with open_archive(path, "NumPy archive") as archive:
        members = named_arrays(archive, path, options.most_bytes)
        total, done = sum(entry.file_size for entry in members.values()), 0
        topics = [name for name in members if not _is_lengths(name, members)]
        if not topics:
            raise MoecastError("the archive holds no arrays", file=path)
        for topic in topics:
            choices_TRK = _choices(archive, members, path, topic)
            tokens = len(choices_TRK)
            length_Q = np.array([tokens] if tokens else [], np.int64)
            if measured := topic + _LENGTHS in members:
                length_Q = _lengths(archive, members[topic + _LENGTHS], path, tokens)
            done += members[topic].file_size
            yield _piece(path, topic, choices_TRK, length_Q, options.phase or "prefill", measured, done / max(total, 1))


def _choices(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], path: Path, topic: str
) -> npt.NDArray[Any]:
    try:
        return read_entry(archive, members[topic], path, topic, 3)
    except MoecastError as error:
        if len(members) < _TABLE_COLUMNS:
            raise
        rule = f"{error.rule}; where the arrays are columns of a table, --columns says what they hold"
        raise MoecastError(rule, file=path, field=topic) from error


def _piece(
    path: Path,
    topic: str,
    choices_TRK: npt.NDArray[Any],
    length_Q: npt.NDArray[np.int64],
    phase: str,
    measured: bool,
    done: float,
) -> Piece:
    tokens = len(choices_TRK)
    start_Q = np.cumsum(length_Q) - length_Q
    return Piece(
        path=path,
        where=topic,
        choices_TRK=choices_TRK,
        sequence_T=np.repeat(np.arange(len(length_Q)), length_Q),
        position_T=np.arange(tokens) - np.repeat(start_Q, length_Q),
        phase_T=one_phase(phase, tokens),
        topics=(topic,),
        remarks=() if measured else ((f"Taken as one sequence each, for want of {_LENGTHS}", topic),),
        done=done,
    )


def _is_lengths(name: str, members: Mapping[str, zipfile.ZipInfo]) -> bool:
    return name.endswith(_LENGTHS) and name.removesuffix(_LENGTHS) in members


def named_arrays(archive: zipfile.ZipFile, path: Path, limit_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The entries of a NumPy archive by name, none of them read yet.

    Raises
    ------
    MoecastError
        Entries that are no arrays, that share a name, or that unpack to more than the limit.
    """
    entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    if total > limit_bytes:
        rule = f"unpacks to {total >> 20} MiB, more than the {limit_bytes >> 20} MiB allowed"
        raise MoecastError(rule, file=path)
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        if name == entry.filename or name in members or not name.isprintable():
            rule = "every entry must be one .npy array with its own name"
            raise MoecastError(rule, file=path, value=entry.filename)
        members[name] = entry
    return members


def _lengths(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, tokens: int) -> npt.NDArray[np.int64]:
    name = entry.filename.removesuffix(".npy")
    raw_Q = read_entry(archive, entry, path, name, 1)
    if raw_Q.size and (int(raw_Q.min()) < 1 or int(raw_Q.max()) > tokens):
        rule = f"lengths must be from 1 to the topic's {tokens} tokens"
        raise MoecastError(rule, file=path, field=name)
    length_Q = raw_Q.astype(np.int64)
    total = int(length_Q.sum())
    if total != tokens:
        rule = f"the lengths add up to {total}, the topic has {tokens} tokens"
        raise MoecastError(rule, file=path, field=name)
    return length_Q


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
    return concatenate(list(NpzImporter().open([Path(path)], options).read()))
