"""Reading routing traces from files that may be anything: streamed, in bounded memory, every value checked.

Axes: T token, L MoE layer, K choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moecast.errors import MoecastError
from moecast.traces.checks import check_choices
from moecast.traces.format import NUMBER_COLUMNS, check_schema, decode_meta, matrix_of, schema_of
from moecast.traces.trace import PHASES, RoutingTrace, TraceMeta, concatenate

_BATCH_BYTES = 32 << 20
_THRIFT_LIMIT = 64 << 20


def shard_paths(path: str | Path) -> list[Path]:
    """Files of a trace: itself, or a folder's shards by name. Hidden files are unfinished and left out.

    Raises
    ------
    MoecastError
        Nothing there, or a folder without shards.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise MoecastError("no such file or folder", file=path)
        return [path]
    shards = sorted(p for p in path.glob("*.parquet") if not p.name.startswith("."))
    if not shards:
        raise MoecastError("the folder holds no .parquet files", file=path)
    return shards


def read_meta(path: str | Path) -> TraceMeta:
    """Read what a trace says about itself, from its first shard and without its rows.

    Raises
    ------
    MoecastError
        Not a routing trace.
    """
    first = shard_paths(path)[0]
    with _open(first) as file:
        return decode_meta(file.schema_arrow.metadata, first)


def iter_trace(
    path: str | Path,
    *,
    phase: str | None = None,
    topics: Collection[str] | None = None,
    weights: bool = False,
    batch_tokens: int | None = None,
) -> Iterator[RoutingTrace]:
    """Yield batches of a trace's tokens in order, in memory bounded by one row group.

    A topic keeps its index in all batches; each batch's `topics` are those seen so far.

    Parameters
    ----------
    path
        File or folder of shards.
    phase, topics
        Only these tokens.
    weights
        Read the gate weights too.
    batch_tokens
        Most tokens in a batch; by default about 32 MiB.

    Raises
    ------
    MoecastError
        The file is truncated, foreign or breaks a rule of the format; or it has no weights and they are asked for.
    ValueError
        A phase that does not exist.
    """
    if phase is not None and phase not in PHASES:
        raise ValueError(f"phase = {phase!r}: must be one of {', '.join(PHASES)}")
    shards = shard_paths(path)
    meta = read_meta(path)
    batch_tokens = batch_tokens or max(1, _BATCH_BYTES // (2 * meta.layers * meta.choices))
    decoder = _Decoder(meta, weights=weights)
    for shard in shards:
        with _open(shard) as file:
            decoder.start(file, shard)
            for batch in _batches(file, shard, decoder.names, batch_tokens):
                trace = decoder.decode(batch)
                keep_T = _matching(trace, phase, topics)
                yield trace if keep_T.all() else trace.select(keep_T)


def read_trace(
    path: str | Path, *, phase: str | None = None, topics: Collection[str] | None = None, weights: bool = False
) -> RoutingTrace:
    """Read a whole trace, or its tokens of one phase and of some topics.

    Raises
    ------
    MoecastError
        The file is truncated, foreign or breaks a rule of the format; no token is left; a topic that it does not have.
    ValueError
        A phase that does not exist.
    """
    batches = list(iter_trace(path, phase=phase, topics=topics, weights=weights))
    if not batches:
        meta = read_meta(path)
        return _empty(meta)
    whole = batches[0] if len(batches) == 1 else concatenate(batches)
    missing = set(topics or ()) - set(whole.topics)
    if missing:
        raise MoecastError(
            f"has the topics {', '.join(whole.topics) or '(none)'}", file=path, field="topics", value=min(missing)
        )
    if (phase or topics) and not whole.n_tokens:
        raise MoecastError(f"no tokens of phase {phase or 'any'} and these topics", file=path)
    return whole


class _Decoder:
    """Turns record batches of one trace into RoutingTraces, with topics numbered over all shards."""

    def __init__(self, meta: TraceMeta, *, weights: bool) -> None:
        self.meta, self.weights = meta, weights
        self.names = schema_of(meta, weights=weights).names
        self.topics: dict[str, int] = {}
        self.known: dict[str, bool] = {}
        self.file, self.row = Path(), 0

    def start(self, file: pq.ParquetFile, path: Path) -> None:
        """Begin a shard: its columns and its L, E, K must be the trace's."""
        self.file, self.row = path, 0
        meta = decode_meta(file.schema_arrow.metadata, path)
        if meta.shape_LEK != self.meta.shape_LEK:
            raise MoecastError(
                f"differ from the first shard's {self.meta.shape_LEK}", file=path, field="L, E, K", value=meta.shape_LEK
            )
        check_schema(file.schema_arrow, meta, path)
        if self.weights and "weights" not in file.schema_arrow.names:
            raise MoecastError("this trace has no gate weights", file=path, field="weights")

    def decode(self, batch: pa.RecordBatch) -> RoutingTrace:
        columns: dict[str, Any] = {
            attribute: self._numbers(batch.column(name), name) for name, attribute in NUMBER_COLUMNS.items()
        }
        columns["phase_T"] = self._phases(batch.column("phase"))
        columns["topic_T"] = self._topic_index(batch.column("topic"))
        columns["experts_TLK"] = self._matrix(batch.column("experts"), "experts", "<u2")
        if self.weights:
            columns["weights_TLK"] = self._matrix(batch.column("weights"), "weights", "<f2")
            if not np.isfinite(columns["weights_TLK"]).all():
                raise self._error("weights", "not a finite number")
        try:
            check_choices(columns["experts_TLK"], self.meta.experts)
            trace = RoutingTrace(meta=self.meta, topics=tuple(self.topics), **columns)
        except ValueError as error:
            raise self._error("experts", str(error)) from error
        self.row += len(batch)
        return trace

    def _error(self, field: str, rule: str) -> MoecastError:
        return MoecastError(f"{rule} (in the rows from {self.row})", file=self.file, field=field)

    def _matrix(self, column: pa.Array, name: str, dtype: str) -> npt.NDArray[Any]:
        if column.null_count:
            raise self._error(name, "must not be null")
        return matrix_of(column, self.meta, dtype)

    def _numbers(self, column: pa.Array, name: str) -> npt.NDArray[Any] | None:
        known = column.null_count == 0
        if name in ("sequence", "position") and not known:
            raise self._error(name, "must not be null")
        if 0 < column.null_count < len(column) or self.known.setdefault(name, known) != known:
            raise self._error(name, "must be known for all tokens of a trace or null for all")
        return column.to_numpy(zero_copy_only=True) if known else None

    def _phases(self, column: pa.Array) -> npt.NDArray[np.uint8]:
        if column.null_count:
            raise self._error("phase", "must not be null")
        coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        names = coded.dictionary.to_pylist()
        used: npt.NDArray[np.int64] = coded.indices.to_numpy().astype(np.int64)
        strange = {names[i] for i in np.unique(used)} - set(PHASES)
        if strange:
            raise MoecastError(
                f"must be one of {', '.join(PHASES)}", file=self.file, field="phase", value=min(map(str, strange))
            )
        number = np.array([PHASES.index(name) if name in PHASES else 0 for name in names], np.uint8)
        return number[used]

    def _topic_index(self, column: pa.Array) -> npt.NDArray[np.int16]:
        coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        used: npt.NDArray[np.int64] = coded.indices.fill_null(-1).to_numpy().astype(np.int64)
        names = coded.dictionary.to_pylist()
        number = np.full(len(names) + 1, -1, np.int16)  # last entry: null
        present, first = np.unique(used, return_index=True)
        for old in present[np.argsort(first)]:
            if old >= 0 and names[old] is not None:
                number[old] = self.topics.setdefault(names[old], len(self.topics))
                if len(self.topics) > np.iinfo(np.int16).max:
                    raise self._error("topic", "more than 32767 topics")
        return number[used]


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, thrift_string_size_limit=_THRIFT_LIMIT, thrift_container_size_limit=_THRIFT_LIMIT)
    except OSError as error:
        raise MoecastError("not a Parquet file, or cannot be read", file=path) from error
    except pa.ArrowException as error:
        raise MoecastError("not a Parquet file, or a truncated one", file=path) from error


def _batches(file: pq.ParquetFile, path: Path, names: list[str], batch_tokens: int) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(batch_size=batch_tokens, columns=names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise MoecastError(f"damaged or truncated Parquet ({_first_line(error)})", file=path) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _matching(trace: RoutingTrace, phase: str | None, topics: Collection[str] | None) -> npt.NDArray[np.bool_]:
    keep_T = np.ones(trace.n_tokens, bool)
    if phase is not None:
        keep_T &= trace.phase_T == PHASES.index(phase)
    if topics is not None:
        wanted = [index for index, name in enumerate(trace.topics) if name in topics]
        keep_T &= np.isin(trace.topic_T, wanted)
    return keep_T


def _empty(meta: TraceMeta) -> RoutingTrace:
    return RoutingTrace(
        meta=dataclasses.replace(meta),
        experts_TLK=np.empty((0, meta.layers, meta.choices), np.uint16),
        sequence_T=np.empty(0, np.uint32),
        position_T=np.empty(0, np.uint32),
        phase_T=np.empty(0, np.uint8),
        topic_T=np.empty(0, np.int16),
    )
