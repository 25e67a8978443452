"""Writing routing traces: one Parquet file, or a folder of shards that is readable after any of them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from moecast.errors import MoecastError
from moecast.files import atomic_path
from moecast.traces.checks import check_choices
from moecast.traces.format import schema_of, to_table
from moecast.traces.trace import RoutingTrace, TraceMeta

# Experts and weights per row group: what a streaming reader holds at once.
_ROW_GROUP_BYTES = 32 << 20
_SHARD_BYTES = 256 << 20


class TraceWriter:
    """Writes a trace batch by batch in bounded memory; use it in a `with` statement.

    A path that ends in `.parquet` becomes one file, made whole or not at all. Any other path becomes a folder of
    shards, each written beside and renamed: a writer that is killed leaves the shards before it, and one that ends with
    an exception also keeps the tokens appended so far.

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
        self.path, self.meta = Path(path), meta
        self._row_group_tokens = max(1, _ROW_GROUP_BYTES // row_bytes)
        self._shard_tokens = shard_tokens or max(1, _SHARD_BYTES // row_bytes)
        if self._shard_tokens < 1:
            raise ValueError(f"shard_tokens = {shard_tokens}: must be at least 1")
        self._compression, self._level = compression, compression_level
        self._single = self.path.suffix == ".parquet"
        self._stack = contextlib.ExitStack()
        self._open: pq.ParquetWriter | None = None
        self._weights: bool | None = None
        self._pending: list[pa.Table] = []
        self._pending_tokens = self._open_tokens = self._shards = 0
        self.n_tokens = 0
        if not self._single:
            _make_folder(self.path)

    def __enter__(self) -> TraceWriter:
        return self

    def append(self, trace: RoutingTrace) -> None:
        """Add a batch of tokens.

        Raises
        ------
        ValueError
            The batch's L, E or K is not the writer's, only some batches have weights, or a token chooses an expert
            twice at one layer.
        """
        if trace.meta.shape_LEK != self.meta.shape_LEK:
            raise ValueError(f"L, E, K = {trace.meta.shape_LEK}: this writer's are {self.meta.shape_LEK}")
        weights = trace.weights_TLK is not None
        if self._weights not in (None, weights):
            raise ValueError("weights_TLK: all batches have it or none")
        self._weights = weights
        check_choices(trace.experts_TLK, self.meta.experts)
        table = to_table(trace).replace_schema_metadata(schema_of(self.meta, weights=weights).metadata)
        start = 0
        while start < len(table):
            room = min(self._row_group_tokens - self._pending_tokens, self._room_in_shard())
            part = table.slice(start, room)
            self._pending.append(part)
            self._pending_tokens += len(part)
            start += len(part)
            self._write_if_full()
        self.n_tokens += len(table)

    def close(self) -> None:
        """Complete the file or the last shard."""
        if self._single and self._open is None and not self._pending:
            self._pending.append(schema_of(self.meta, weights=bool(self._weights)).empty_table())
        self._write_pending()
        self._complete_shard()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not self._single:
            self.close()
        elif self._open is not None:
            with contextlib.suppress(OSError):
                self._open.close()
            self._stack.__exit__(kind, error, trace)

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
        # Batches may name the topics in different orders: a row group has one dictionary.
        table = pa.concat_tables(self._pending).unify_dictionaries().combine_chunks()
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
            write_statistics=["step", "sequence", "position", "phase", "topic"],
        )

    def _complete_shard(self) -> None:
        if self._open is None:
            return
        self._open.close()
        self._stack.close()
        self._open, self._open_tokens = None, 0
        self._shards += 1


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


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
        if any(path.iterdir()):
            raise MoecastError("the folder holds something already, name a new one", file=path)
    except FileExistsError as error:
        raise MoecastError("is a file; a name ending in .parquet makes one file, others a folder", file=path) from error
    except OSError as error:
        raise MoecastError(f"the folder cannot be made ({error.strerror})", file=path) from error
