"""From Parquet to arrays: opens files that may be anything and checks every value it hands on.

Axes: T token, L MoE layer, K choice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moecast.errors import MoecastError
from moecast.traces.format import NUMBER_COLUMNS, check_schema, decode_meta, matrix_of
from moecast.traces.meta import PHASES, TraceMeta
from moecast.traces.trace import RoutingTrace

# Footers list every column of every row group; far above any trace, far below what hurts.
_THRIFT_LIMIT = 64 << 20
_READ_BUFFER_BYTES = 4 << 20
_MAX_TOPICS = 32767


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file and read its footer.

    Raises
    ------
    MoecastError
        Not Parquet, truncated, or not readable.
    """
    try:
        return pq.ParquetFile(
            path,
            buffer_size=_READ_BUFFER_BYTES,  # without it, a whole column of a row group is held
            thrift_string_size_limit=_THRIFT_LIMIT,
            thrift_container_size_limit=_THRIFT_LIMIT,
            page_checksum_verification=True,
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        raise MoecastError(f"not a Parquet file, or a truncated one ({_first_line(error)})", file=path) from error


class Decoder:
    """Reads the shards of one trace batch by batch; topics are numbered by first appearance over all shards.

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

    def batches(self, path: Path, batch_tokens: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Yield a shard's columns as arrays, by their RoutingTrace names; unknown ones are left out.

        Raises
        ------
        MoecastError
            Damaged, foreign, or a value that the format does not allow.
        """
        self._file, self._row = path, 0
        with open_parquet(path) as file:
            self._check_shard(file.schema_arrow)
            rows = file.metadata.num_rows
            batches = file.iter_batches(batch_size=batch_tokens, columns=self._columns, use_threads=False)
            while (batch := self._next(batches)) is not None:
                if len(batch) and self._row + len(batch) <= rows:
                    yield self._decode(batch)
                self._row += len(batch)
            if self._row != rows:
                raise MoecastError(f"damaged Parquet: {rows} rows promised, {self._row} there", file=path)

    def trace(self, columns: dict[str, Any]) -> RoutingTrace:
        """Make the trace of one batch.

        Raises
        ------
        MoecastError
            An expert id out of range, or an expert twice for a token at one layer.
        """
        from moecast.traces.checks import check_choices

        try:
            check_choices(columns["experts_TLK"], self.meta.experts, first_token=self._row)
        except ValueError as error:
            raise MoecastError(str(error), file=self._file, field="experts") from error
        return RoutingTrace(meta=self.meta, topics=self.topics, **columns)

    def _check_shard(self, schema: pa.Schema) -> None:
        meta = decode_meta(schema.metadata, self._file)
        if meta.shape_LEK != self.meta.shape_LEK:
            rule = f"the trace's first shard says {self.meta.shape_LEK}"
            raise MoecastError(rule, file=self._file, field="L, E, K", value=meta.shape_LEK)
        check_schema(schema, meta, self._file)
        if "weights" in self._columns and "weights" not in schema.names:
            raise MoecastError("this trace has no gate weights", file=self._file, field="weights")

    def _next(self, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
        try:
            return next(batches, None)
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise MoecastError(f"damaged or truncated Parquet ({_first_line(error)})", file=self._file) from error

    def _decode(self, batch: pa.RecordBatch) -> dict[str, npt.NDArray[Any]]:
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
        return column.to_numpy(zero_copy_only=True) if known else None

    def _phases(self, column: pa.Array) -> npt.NDArray[np.uint8]:
        names, used_T = self._codes(column)
        strange = {str(names[i]) for i in np.unique(used_T)} - set(PHASES)
        if strange:
            raise self._error("phase", f"must be one of {', '.join(PHASES)}", min(strange))
        number = np.array([PHASES.index(name) if name in PHASES else 0 for name in names], np.uint8)
        return number[used_T]

    def _topic_index(self, column: pa.Array) -> npt.NDArray[np.int16]:
        names, used_T = self._codes(column)
        number = np.full(len(names) + 1, -1, np.int16)  # the last entry stands for null
        present, first = np.unique(used_T, return_index=True)
        for old in present[np.argsort(first)]:
            if old >= 0 and names[old] is not None:
                number[old] = self._topics.setdefault(names[old], len(self._topics))
                if len(self._topics) > _MAX_TOPICS:
                    raise self._error("topic", f"more than {_MAX_TOPICS} topics")
        return number[used_T]

    def _codes(self, column: pa.Array) -> tuple[list[str | None], npt.NDArray[np.int64]]:
        """Return the dictionary of a text column and each row's place in it, -1 for null."""
        try:
            coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
            names = coded.dictionary.to_pylist()
        except ValueError as error:  # not UTF-8
            raise MoecastError(f"damaged Parquet ({_first_line(error)})", file=self._file) from error
        used_T = coded.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        if not -1 <= used_T.min() <= used_T.max() < len(names):
            raise MoecastError("damaged Parquet (a dictionary is too short)", file=self._file)
        return names, used_T


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
