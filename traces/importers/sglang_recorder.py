"""SGLang's expert-distribution recorder: ``.pt`` files of ``/dump_expert_distribution_record``.

``--expert-distribution-recorder-mode`` decides what they hold (sgl-project/sglang,
python/sglang/srt/eplb/expert_distribution.py, 0.5.23 and commit 02295fe):

- ``stat``, ``stat_approx``: `logical_count` [steps, hidden layers, experts], summed over ranks,
  written by rank 0.
- ``per_pass``: `records`, each `forward_pass_id`, `rank` and `global_physical_count` [hidden
  layers, physical experts].
- ``per_token``: `records` with `input_ids`, `positions`, `extend_seq_lens`, `forward_mode` (1
  extend, 2 decode, 3 mixed, 4 idle) and `topk_ids_of_layer` [hidden layers, tokens, 8], physical
  ids, -1 where nothing was chosen.

The last two come from every rank with `last_physical_to_logical_map` [hidden layers, physical
experts], the map at the time of the dump. Requests are not named: each part of a prompt that a pass
extends is a sequence, and so is each decoded token. Axes: T token, R row (hidden layer), K choice,
E logical expert, P physical expert.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.importers.arrays import array_of_lists
from moecast.traces.importers.assemble import Layout, assemble
from moecast.traces.importers.counts import Counts, RankCounts, counted_table
from moecast.traces.importers.importer import ImportedTrace
from moecast.traces.importers.options import ImportOptions
from moecast.traces.importers.pieces import Ints, Piece, one_phase
from moecast.traces.importers.provenance import Reading
from moecast.traces.importers.torch_file import TorchFile, open_torch
from moecast.traces.load_table import LoadTable
from moecast.traces.meta import MAX_EXPERTS, MAX_LAYERS

_EXTEND, _DECODE, _IDLE = 1, 2, 4
_LAYOUT = Layout(
    importer="sglang", engine="SGLang, expert distribution recorder, per_token", rows="hidden", trim_choices=True
)
_SENTENCES = "The recorder does not name requests: each extended part of a prompt and each decoded token is a sequence"
_MAPPED = "Physical experts are mapped to logical ones as at the time of the dump"


def recorder_files(folder: Path) -> list[Path]:
    """The recorder's dumps in a folder, by name."""
    return sorted(folder.glob("expert_distribution_recorder_*.pt"))


def open_recorder(paths: Sequence[Path], options: ImportOptions) -> ImportedTrace | LoadTable:
    """Read dumps that are all of one mode."""
    kinds = [_kind(path, options) for path in paths]
    for path, (kind, _) in zip(paths, kinds, strict=True):
        if kind != kinds[0][0]:
            rule = f"recorded in mode {kind}, {paths[0].name} in mode {kinds[0][0]}"
            raise MoecastError(rule, file=path)
    if kinds[0][0] == "stat":
        return _stat(paths, options)
    experts = max(experts for _, experts in kinds)
    if kinds[0][0] == "per_pass":
        return _per_pass(paths, experts, options)
    return _per_token(paths, experts, options)


def _kind(path: Path, options: ImportOptions) -> tuple[str, int]:
    """The mode it was recorded in, and how many logical experts its map names."""
    with open_torch(path, limit_bytes=options.most_bytes) as file:
        value = file.value
        if type(value) is dict and "logical_count" in value:
            return "stat", 0
        for record in _records(value, path):
            return "per_token" if "topk_ids_of_layer" in record else "per_pass", int(_map(file, path).max()) + 1
    raise MoecastError("holds no forward pass", file=path)


def _stat(paths: Sequence[Path], options: ImportOptions) -> LoadTable:
    reading, total, steps = Reading(paths, options.progress, passes=1), None, 0
    for path in paths:
        with open_torch(path, limit_bytes=options.most_bytes) as file:
            counts_SRE = file.read(file.value["logical_count"], "logical_count", 3)
        _check_width(counts_SRE.shape[1:], path)
        steps += int(counts_SRE.any(axis=(1, 2)).sum())
        total = _added(total, counts_SRE.astype(np.int64).sum(axis=0), path)
        reading.advance(path, 1.0)
    assert total is not None
    notes = [f"Summed over {steps:,} forward passes; the recorder sums over ranks."]
    engine = "SGLang, expert distribution recorder, stat"
    return counted_table(
        paths, total, options, importer="sglang", engine=engine, rows="hidden", choices=None, notes=notes
    )


def _per_pass(paths: Sequence[Path], experts: int, options: ImportOptions) -> LoadTable:
    reading, counts, passes = Reading(paths, options.progress, passes=1), RankCounts(), set()
    total: Counts | None = None
    for path in paths:
        with open_torch(path, limit_bytes=options.most_bytes) as file:
            map_RP = _map(file, path)
            for where, record in _numbered(file.value, path):
                physical_RP = file.read(record.get("global_physical_count"), where, 2)
                logical_RE = _logical_counts(physical_RP, map_RP, experts, path, where)
                if total is not None and logical_RE.shape != total.shape:
                    rule = "differs in layers and experts from the passes before"
                    raise MoecastError(rule, file=path, field=where)
                total = logical_RE if total is None else total
                step = _number(record, "forward_pass_id", path, where)
                passes.add(step)
                counts.add(_number(record, "rank", path, where), str(step), logical_RE)
        reading.advance(path, 1.0)
    load_RE, note = counts.total()
    notes = [f"Summed over {len(passes):,} forward passes.", note, f"{_MAPPED}."]
    engine = "SGLang, expert distribution recorder, per_pass"
    return counted_table(
        paths, load_RE, options, importer="sglang", engine=engine, rows="hidden", choices=None, notes=notes
    )


def _per_token(paths: Sequence[Path], experts: int, options: ImportOptions) -> ImportedTrace:
    def pieces() -> Iterator[Piece]:
        digests: dict[int, Any] = {}
        for path in paths:
            with open_torch(path, limit_bytes=options.most_bytes) as file:
                map_RP = _map(file, path)
                records = list(_numbered(file.value, path))
                for number, (where, record) in enumerate(records):
                    piece = _piece(file, path, where, record, map_RP, (number + 1) / len(records))
                    if piece is not None:
                        _digest(digests, piece)
                        yield piece
        _check_ranks_differ(digests, paths[0])

    return assemble(paths, pieces, _LAYOUT, options, experts=experts)


def _piece(file: TorchFile, path: Path, where: str, record: dict[str, Any], map_RP: Ints, done: float) -> Piece | None:
    """A forward pass of a rank; None for one without tokens."""
    mode, rank = _number(record, "forward_mode", path, where), _number(record, "rank", path, where)
    ids = array_of_lists(record.get("input_ids"), 1, path, f"{where}: input_ids")
    if mode == _IDLE or not len(ids):
        return None
    if mode not in (_EXTEND, _DECODE):
        rule = "is neither prefill (1) nor decode (2): record without mixed chunks and speculation"
        raise MoecastError(rule, file=path, field=f"{where}: forward_mode", value=mode)
    tokens = len(ids)
    sequence_T = np.arange(tokens)
    if mode == _EXTEND:
        sequence_T = _extended(record, tokens, path, where)
    count = len(sequence_T)
    position_T = array_of_lists(record.get("positions"), 1, path, f"{where}: positions")
    if len(position_T) != tokens:
        raise MoecastError(f"{len(position_T)} positions for {tokens} tokens", file=path, field=where)
    raw_RTK = file.read(record.get("topk_ids_of_layer"), f"{where}: topk_ids_of_layer", 3)
    if raw_RTK.shape[1] != tokens or len(raw_RTK) != len(map_RP):
        rule = f"topk_ids_of_layer is {list(raw_RTK.shape)}, of {len(map_RP)} layers and {tokens} tokens"
        raise MoecastError(rule, file=path, field=where)
    logical_RTK = _logical_ids(raw_RTK, map_RP, path, where)
    return Piece(
        path=path,
        where=where,
        choices_TRK=logical_RTK.transpose(1, 0, 2)[:count],
        sequence_T=sequence_T,
        position_T=position_T[:count],
        phase_T=one_phase("prefill" if mode == _EXTEND else "decode", count),
        step_T=np.full(count, _number(record, "forward_pass_id", path, where)),
        source_rank_T=np.full(count, rank),
        token_id_T=ids[:count],
        remarks=((_SENTENCES, ""), (_MAPPED, "")),
        done=done,
    )


def _extended(record: dict[str, Any], tokens: int, path: Path, where: str) -> npt.NDArray[np.int64]:
    """The sequence of each token that a pass extends prompts by; tokens beyond them are padding."""
    length_Q = array_of_lists(record.get("extend_seq_lens"), 1, path, f"{where}: extend_seq_lens")
    if (len(length_Q) and int(length_Q.min()) < 0) or sum(length_Q.tolist()) > tokens:
        rule = f"extend_seq_lens do not fit its {tokens} tokens"
        raise MoecastError(rule, file=path, field=where)
    return np.repeat(np.arange(len(length_Q)), length_Q)


def _logical_ids(raw_RTK: Ints, map_RP: Ints, path: Path, where: str) -> npt.NDArray[np.int64]:
    physical = map_RP.shape[1]
    if raw_RTK.size and not -1 <= int(raw_RTK.min()) <= int(raw_RTK.max()) < physical:
        rule = (
            f"an id outside the {physical} experts of last_physical_to_logical_map: record with "
            "--disable-shared-experts-fusion"
        )
        raise MoecastError(rule, file=path, field=where, value=int(raw_RTK.max()))
    # One more column, which -1 finds from behind.
    with_none_RP = np.pad(map_RP, ((0, 0), (0, 1)), constant_values=-1)
    rows = np.arange(len(map_RP))[:, None, None]
    return with_none_RP[rows, raw_RTK.astype(np.int64)]


def _logical_counts(physical_RP: Ints, map_RP: Ints, experts: int, path: Path, where: str) -> Counts:
    if physical_RP.shape != map_RP.shape:
        rule = f"counts are {list(physical_RP.shape)}, last_physical_to_logical_map {list(map_RP.shape)}"
        raise MoecastError(rule, file=path, field=where)
    logical_RE = np.zeros((len(map_RP), experts), np.int64)
    np.add.at(logical_RE, (np.arange(len(map_RP))[:, None], map_RP), physical_RP.astype(np.int64))
    return logical_RE


def _map(file: TorchFile, path: Path) -> npt.NDArray[np.int64]:
    """The map from physical to logical experts by layer."""
    name = "last_physical_to_logical_map"
    map_RP = file.read(file.value.get(name), name, 2).astype(np.int64)
    _check_width(map_RP.shape, path)
    if int(map_RP.min()) < 0 or int(map_RP.max()) >= map_RP.shape[1]:
        raise MoecastError("a logical expert out of range", file=path, field=name)
    return map_RP


def _check_width(shape: tuple[int, ...], path: Path) -> None:
    if not (1 <= shape[0] <= MAX_LAYERS and 1 <= shape[1] <= MAX_EXPERTS):
        raise MoecastError("must be [layers, experts]", file=path, value=list(shape))


def _records(value: Any, path: Path) -> list[dict[str, Any]]:
    records = value.get("records") if type(value) is dict else None
    if type(records) is not list or any(type(record) is not dict for record in records):
        rule = "holds neither logical_count nor records: not a dump of the recorder"
        raise MoecastError(rule, file=path)
    return records


def _numbered(value: Any, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, record in enumerate(_records(value, path)):
        yield f"records[{number}]", record


def _number(record: dict[str, Any], name: str, path: Path, where: str) -> int:
    value = record.get(name)
    if type(value) is not int or not 0 <= value < 2**63:
        raise MoecastError(f"{name} must be a whole number", file=path, field=where)
    return value


def _added(total: Counts | None, counts_RE: Counts, path: Path) -> Counts:
    if total is not None and total.shape != counts_RE.shape:
        rule = f"is {list(counts_RE.shape)}, the files before {list(total.shape)}"
        raise MoecastError(rule, file=path)
    return counts_RE if total is None else total + counts_RE


def _digest(digests: dict[int, Any], piece: Piece) -> None:
    assert piece.source_rank_T is not None
    assert piece.step_T is not None
    digest = digests.setdefault(int(piece.source_rank_T[0]) if len(piece.source_rank_T) else -1, hashlib.sha256())
    for array in (piece.step_T, piece.position_T, piece.token_id_T, piece.choices_TRK):
        digest.update(np.ascontiguousarray(array).tobytes())


def _check_ranks_differ(digests: dict[int, Any], path: Path) -> None:
    """Refuse ranks that recorded the same tokens: with tensor-parallel attention every rank sees all of them."""
    seen: dict[bytes, int] = {}
    for rank, digest in digests.items():
        other = seen.setdefault(digest.digest(), rank)
        if other != rank:
            rule = (
                f"ranks {other} and {rank} recorded the same tokens (tensor-parallel attention): import one rank's file"
            )
            raise MoecastError(rule, file=path)
