"""From Parquet to arrays: opens files that may be anything and checks every value it hands on.

Axes: T token, L MoE layer, K choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moecast.errors import MoecastError
from moecast.files import check_regular
from moecast.threads import in_order
from moecast.traces.format import NUMBER_COLUMNS, check_schema, codes_of, decode_meta, matrix_of, numbers_of
from moecast.traces.meta import MAX_TOPICS, PHASES, TraceMeta
from moecast.traces.trace import RoutingTrace

# Footers list every column of every row group; far above any trace, far below what hurts.
_THRIFT_LIMIT = 64 << 20
_READ_BUFFER_BYTES = 4 << 20


def open_parquet(path: Path, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a Parquet file and read its footer, unless it has been read already.

    Raises
    ------
    MoecastError
        Not Parquet, truncated, or not readable.
    """
    check_regular(path)
    try:
        return pq.ParquetFile(
            path,
            metadata=footer,
            buffer_size=_READ_BUFFER_BYTES,  # without it, a whole column of a row group is held
            thrift_string_size_limit=_THRIFT_LIMIT,
            thrift_container_size_limit=_THRIFT_LIMIT,
            page_checksum_verification=True,
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        rule = f"a truncated or damaged Parquet file ({_first_line(error)})"
        if not _begins_as_parquet(path):
            rule = "not a Parquet file, which a trace is; moecast trace import reads what engines record"
        raise MoecastError(rule, file=path) from error


def _begins_as_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return True  # the error itself says what is wrong


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """Row groups of one shard that are read together."""

    path: Path
    footer: pq.FileMetaData
    groups: range
    rows: int

    def read(self, columns: list[str], batch_tokens: int, meta: TraceMeta) -> Iterator[_Batch]:
        """Read and check the choices; what depends on the batches before is left to the decoder."""
        left = self.rows
        with open_parquet(self.path, self.footer) as file:
            batches = file.iter_batches(batch_tokens, self.groups, columns, use_threads=False)
            while left >= 0 and (batch := _next(batches, self.path)) is not None:
                left -= len(batch)
                yield batch, _bad_choice(batch, meta)


def _runs(path: Path, footer: pq.FileMetaData, batch_tokens: int) -> Iterator[_Run]:
    """Row groups in order, as many at a time as one batch takes."""
    first, rows = 0, 0
    for group in range(footer.num_row_groups + 1):
        last = group == footer.num_row_groups
        more = 0 if last else footer.row_group(group).num_rows
        if group > first and (last or rows + more > batch_tokens):
            yield _Run(path=path, footer=footer, groups=range(first, group), rows=rows)
            first, rows = group, 0
        rows += more


# A batch, and where its first bad choice is.
_Batch = tuple[pa.RecordBatch, tuple[int, int, int]]
_NONE_BAD = -1, -1, -1


def _next(batches: Iterator[pa.RecordBatch], path: Path) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        rule = f"damaged or truncated Parquet ({_first_line(error)})"
        raise MoecastError(rule, file=path) from error


def _bad_choice(batch: pa.RecordBatch, meta: TraceMeta) -> tuple[int, int, int]:
    if "experts" not in batch.schema.names or batch.column("experts").null_count:
        return _NONE_BAD
    from moecast.traces.checks import first_bad_choice  # compiled: only where choices are read

    bad: tuple[int, int, int] = first_bad_choice(matrix_of(batch.column("experts"), meta, "<u2"), meta.experts)
    return bad


class Decoder:
    """Reads the shards of one trace batch by batch.

    Topics are numbered by first appearance over all shards.

    Parameters
    ----------
    meta
        Of the first shard; the others must agree in L, E and K.
    columns
        Parquet columns to read, `phase` and `topic` among them.
    """

    def __init__(self, meta: TraceMeta, columns: Collection[str]) -> None:
        self.meta = meta
        self._columns = list(columns)
        self._topics: dict[str, int] = {}
        self._known: dict[str, bool] = {}
        self._file, self._row = Path(), 0

    @property
    def topics(self) -> tuple[str, ...]:
        """Topics seen so far."""
        return tuple(self._topics)

    def batches(
        self, shards: Iterable[Path], batch_tokens: int, *, threads: int = 1
    ) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Yield the columns of shard after shard as arrays, by their RoutingTrace names.

        Unknown ones are left out.

        Row groups are read on `threads` threads; as many wait or are in work as there are threads.

        Raises
        ------
        MoecastError
            Damaged, foreign, or a value that the format does not allow.
        """
        for shard in shards:
            with open_parquet(shard) as file:
                footer, schema = file.metadata, file.schema_arrow
            self._file, self._row = shard, 0
            self._check_shard(schema)
            reads = (partial(self._read, run, batch_tokens) for run in _runs(shard, footer, batch_tokens))
            for batches in in_order(reads, threads):
                for batch, bad in batches:
                    if len(batch) and self._row + len(batch) <= footer.num_rows:
                        yield self._decode(batch, bad)
                    self._row += len(batch)
            if self._row != footer.num_rows:
                rule = f"damaged Parquet: {footer.num_rows} rows promised, {self._row} there"
                raise MoecastError(rule, file=shard)

    def trace(self, columns: dict[str, Any]) -> RoutingTrace:
        """Make the trace of one batch."""
        return RoutingTrace(meta=self.meta, topics=self.topics, **columns)

    def _check_shard(self, schema: pa.Schema) -> None:
        meta = decode_meta(schema.metadata, self._file)
        if meta.shape_LEK != self.meta.shape_LEK:
            rule = f"the trace's first shard says {self.meta.shape_LEK}"
            raise MoecastError(rule, file=self._file, field="L, E, K", value=meta.shape_LEK)
        check_schema(schema, meta, self._file)
        if "weights" in self._columns and "weights" not in schema.names:
            raise MoecastError("this trace has no gate weights", file=self._file, field="weights")

    def _read(self, run: _Run, batch_tokens: int) -> Iterable[_Batch]:
        """Read a run ahead; a row group larger than a batch is read while it is used, since it may be very large."""
        batches = run.read(self._columns, batch_tokens, self.meta)
        return list(batches) if run.rows <= batch_tokens else batches

    def _decode(self, batch: pa.RecordBatch, bad: tuple[int, int, int]) -> dict[str, npt.NDArray[Any]]:
        if bad[0] >= 0:
            from moecast.traces.checks import complaint

            rule = complaint(bad, self.meta.experts, first_token=self._row)
            raise MoecastError(rule, file=self._file, field="experts")
        decoded: dict[str, npt.NDArray[Any] | None] = {}
        for name in self._columns:
            column = batch.column(name)
            if name in NUMBER_COLUMNS:
                decoded[NUMBER_COLUMNS[name]] = self._numbers(column, name)
            elif name == "topic":
                decoded["topic_T"] = self._topic_index(column)
            else:
                if column.null_count:
                    raise self._error(name, "must not be null")
                decoded |= self._never_null(column, name)
        return {name: array for name, array in decoded.items() if array is not None}

    def _never_null(self, column: pa.Array, name: str) -> dict[str, npt.NDArray[Any]]:
        if name == "phase":
            return {"phase_T": self._phases(column)}
        if name == "experts":
            return {"experts_TLK": matrix_of(column, self.meta, "<u2")}
        weights_TLK = matrix_of(column, self.meta, "<f2")
        if not np.isfinite(weights_TLK).all():
            raise self._error(name, "must be finite numbers")
        return {"weights_TLK": weights_TLK}

    def _error(self, field: str, rule: str, value: object = None) -> MoecastError:
        return MoecastError(f"{rule} (in the rows from {self._row})", file=self._file, field=field, value=value)

    def _numbers(self, column: pa.Array, name: str) -> npt.NDArray[Any] | None:
        known = column.null_count == 0
        if name in ("sequence", "position") and not known:
            raise self._error(name, "must not be null")
        if 0 < column.null_count < len(column) or self._known.setdefault(name, known) != known:
            raise self._error(name, "must be known for all tokens of a trace or null for all")
        return numbers_of(column) if known else None

    def _phases(self, column: pa.Array) -> npt.NDArray[np.uint8]:
        names, used_T = self._codes(column)
        used = np.flatnonzero(np.bincount(used_T + 1, minlength=len(names) + 1)) - 1
        strange = {str(names[i]) for i in used} - set(PHASES)
        if strange:
            raise self._error("phase", f"must be one of {', '.join(PHASES)}", min(strange))
        number = np.array([PHASES.index(name) if name in PHASES else 0 for name in names], np.uint8)
        return number[used_T]

    def _topic_index(self, column: pa.Array) -> npt.NDArray[np.int16]:
        names, used_T = self._codes(column)
        number = np.full(len(names) + 1, -1, np.int16)  # the last entry stands for null
        present = np.flatnonzero(np.bincount(used_T + 1, minlength=len(names) + 1)[1:])
        if any(names[old] is not None and names[old] not in self._topics for old in present):
            present, first = np.unique(used_T[used_T >= 0], return_index=True)
            present = present[np.argsort(first)]
        for old in present:
            name = names[old]
            if name is not None:
                number[old] = self._topics.setdefault(name, len(self._topics))
                if len(self._topics) > MAX_TOPICS:
                    raise self._error("topic", f"more than {MAX_TOPICS} topics")
        return number[used_T]

    def _codes(self, column: pa.Array) -> tuple[list[str | None], npt.NDArray[np.int64]]:
        """Return the dictionary of a text column and each row's place in it, -1 for null."""
        try:
            coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
            names = coded.dictionary.to_pylist()
        except ValueError as error:  # not UTF-8
            rule = f"damaged Parquet ({_first_line(error)})"
            raise MoecastError(rule, file=self._file) from error
        used_T = codes_of(coded.indices)
        if not -1 <= used_T.min() <= used_T.max() < len(names):
            raise MoecastError("damaged Parquet (a dictionary is too short)", file=self._file)
        return names, used_T


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
