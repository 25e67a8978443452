"""Writing routing traces: one Parquet file, or a folder of shards that is readable after any of them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moecast.errors import MoecastError
from moecast.files import atomic_path, check_writable
from moecast.traces.checks import check_choices
from moecast.traces.format import schema_of, to_table
from moecast.traces.meta import TraceMeta
from moecast.traces.trace import RoutingTrace, concatenate

# Choices per row group: what the writer holds back, and what other readers hold at once.
_ROW_GROUP_BYTES = 32 << 20
_SHARD_BYTES = 256 << 20
_RISING = ("step", "sequence", "position")


class TraceWriter:
    """Writes a trace batch by batch in bounded memory; use it in a `with` statement.

    A path that ends in `.parquet` becomes one file, made whole or not at all. Any other path
    becomes a folder of shards, each written beside and renamed: a writer that is killed leaves the
    shards before it, and one that ends with an exception also keeps the tokens appended so far.

    Parameters
    ----------
    path
        A new folder, or a file.
    meta
        Must agree in L, E and K with every batch.
    shard_tokens
        Tokens per shard; by default about 256 MiB before compression.
    compression, compression_level
        As pyarrow names them.

    Raises
    ------
    MoecastError
        The path cannot be written, or the folder holds something already.
    TypeError
        `meta` holds something that JSON cannot say.
    """

    def __init__(
        self,
        path: str | Path,
        meta: TraceMeta,
        *,
        shard_tokens: int | None = None,
        compression: str = "zstd",
        compression_level: int | None = None,
    ) -> None:
        row_bytes = 2 * meta.layers * meta.choices
        self.path, self.meta, self.n_tokens = Path(path), meta, 0
        self._row_group_tokens = max(1, _ROW_GROUP_BYTES // row_bytes)
        self._shard_tokens = max(1, _SHARD_BYTES // row_bytes) if shard_tokens is None else shard_tokens
        if self._shard_tokens < 1:
            raise ValueError(f"shard_tokens = {shard_tokens}: must be at least 1")
        self._compression, self._level = compression, compression_level
        self._single = self.path.suffix == ".parquet"
        self._stack = contextlib.ExitStack()
        self._open: pq.ParquetWriter | None = None
        self._columns: frozenset[str] | None = None
        self._nothing = RoutingTrace.empty(meta)
        self._pending: list[RoutingTrace] = []
        self._pending_tokens = self._open_tokens = self._shards = 0
        schema_of(meta, weights=False)  # fails now if meta is no JSON
        check_target(self.path)
        if not self._single:
            with self._disk_errors():
                self.path.mkdir(exist_ok=True)

    def __enter__(self) -> TraceWriter:
        return self

    def append(self, trace: RoutingTrace) -> None:
        """Add a batch of tokens; its arrays are copied and may change afterwards.

        Raises
        ------
        ValueError
            The batch's L, E or K is not the writer's, it has other columns than the batches before,
            or a token chooses an expert twice at one layer.
        MoecastError
            The disk is full.
        """
        if trace.meta.shape_LEK != self.meta.shape_LEK:
            raise ValueError(f"L, E, K = {trace.meta.shape_LEK}: this writer's are {self.meta.shape_LEK}")
        check_choices(trace.experts_TLK, self.meta.experts)
        columns = frozenset(trace.columns())
        if different := columns ^ (self._columns or columns):
            raise ValueError(f"all batches must have the same columns, only some have {', '.join(sorted(different))}")
        if not self._columns:
            self._nothing = trace.select(slice(0, 0))  # an empty trace, too, keeps its columns
        self._columns = columns
        for part in self._row_group_parts(trace):
            copies: dict[str, Any] = {name: array.copy() for name, array in part.columns().items()}
            self._pending.append(dataclasses.replace(part, **copies))
            self._pending_tokens += part.n_tokens
            self.n_tokens += part.n_tokens
            self._write_if_full()

    def close(self) -> None:
        """Complete the file or the last shard; without a token, an empty one."""
        if not self._pending and self._open is None and not self._shards:
            self._pending.append(self._nothing)
        self._write_pending()
        self._complete_shard()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None or not self._single:
                self.close()
        finally:
            self._abandon()

    def _row_group_parts(self, trace: RoutingTrace) -> Iterator[RoutingTrace]:
        """Cut a batch where row groups and shards are full."""
        start = 0
        while start < trace.n_tokens:
            room = min(self._row_group_tokens - self._pending_tokens, self._room_in_shard())
            yield trace.select(slice(start, start + room))
            start += room

    def _room_in_shard(self) -> int:
        if self._single:
            return self._row_group_tokens
        return self._shard_tokens - self._open_tokens - self._pending_tokens

    def _write_if_full(self) -> None:
        if self._pending_tokens == self._row_group_tokens or self._room_in_shard() == 0:
            self._write_pending()
        if self._room_in_shard() == 0:
            self._complete_shard()

    def _write_pending(self) -> None:
        if not self._pending:
            return
        table = to_table(concatenate(self._pending), self.meta)
        with self._disk_errors():
            if self._open is None:
                self._open = self._start(table.schema)
            self._open.write_table(table, row_group_size=max(1, len(table)))
        self._open_tokens += len(table)
        self._pending, self._pending_tokens = [], 0

    def _start(self, schema: pa.Schema) -> pq.ParquetWriter:
        path = self.path if self._single else self.path / f"part-{self._shards:05d}.parquet"
        part = self._stack.enter_context(atomic_path(path))
        return pq.ParquetWriter(
            part,
            schema,
            compression=self._compression,
            compression_level=self._level,
            use_dictionary=["phase", "topic"],
            column_encoding=dict.fromkeys(_RISING, "DELTA_BINARY_PACKED"),
            write_statistics=[name for name in schema.names if name not in ("experts", "weights")],
            write_page_checksum=True,
        )

    def _complete_shard(self) -> None:
        if self._open is None:
            return
        with self._disk_errors():
            self._open.close()
            self._stack.close()
        self._open, self._open_tokens = None, 0
        self._shards += 1

    def _abandon(self) -> None:
        """Remove what is unfinished, if anything."""
        if self._open is not None:
            with contextlib.suppress(OSError):
                self._open.close()
            unfinished = InterruptedError()
            self._stack.__exit__(InterruptedError, unfinished, None)
            self._open = None

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            rule = f"cannot be written ({error.strerror or error})"
            raise MoecastError(rule, file=self.path) from error


def write_trace(trace: RoutingTrace, path: str | Path, *, compression_level: int | None = None) -> None:
    """Write a whole trace to a `.parquet` file, or to a new folder of shards.

    Raises
    ------
    MoecastError
        The path cannot be written.
    ValueError
        A token chooses an expert twice at one layer.
    """
    with TraceWriter(path, trace.meta, compression_level=compression_level) as writer:
        writer.append(trace)


def check_target(path: str | Path) -> None:
    """Fail in one line when no trace can be written at `path`; called before long work starts.

    Raises
    ------
    MoecastError
        The folder to write in is missing or not writable, a folder for shards holds something
        already, or the name of a folder that would be made ends like a file's.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        check_writable(path)
    elif path.is_dir():
        if any(path.iterdir()):
            raise MoecastError("the folder holds something already, name a new one", file=path)
    elif path.exists():
        raise MoecastError("is a file; a name ending in .parquet makes one file, others a folder", file=path)
    elif path.suffix[1:2].isalpha():  # run-0.1 may well be a folder
        rule = f"a trace is a .parquet file or a folder of shards, and neither is called {path.suffix}"
        raise MoecastError(rule, file=path)
    else:
        check_writable(path)  # its parent, that is
