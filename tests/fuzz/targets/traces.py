"""Traces in Parquet, one file or a folder of shards, and load tables."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from moecast.traces import (
    LoadTable,
    RoutingTrace,
    describe_trace,
    read_load_table,
    read_trace,
    write_load_table,
    write_trace,
)
from tests.fuzz.mutations import SCALARS, mutate, mutate_bytes, to_json, write_json
from tests.fuzz.runner import Target
from tests.strategies import traces


def write_damaged(trace: RoutingTrace, rng: Random, path: Path) -> None:
    write_trace(trace, path)
    if rng.random() < 0.6:
        table = pq.read_table(path)
        for _ in range(rng.randint(1, 2)):
            table = rng.choice((_column, _column, _metadata, _metadata, _rows))(table, rng)
        _store(table, rng, path)
    if rng.random() < 0.3:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))


def _store(table: pa.Table, rng: Random, path: Path) -> None:
    packing = rng.choice(("none", "zstd", "snappy", "gzip"))
    groups = rng.choice((None, 1, 3))
    pq.write_table(table, path, compression=packing, row_group_size=groups, use_dictionary=rng.random() < 0.5)


def _metadata(table: pa.Table, rng: Random) -> pa.Table:
    metadata = dict(table.schema.metadata or {})
    if not metadata:
        return table
    key = rng.choice(sorted(metadata))
    how = rng.randrange(4)
    if how == 0:
        del metadata[key]
    elif how == 1:
        metadata[key] = mutate_bytes(metadata[key], rng)
    elif how == 2:
        metadata[key] = to_json(rng.choice(SCALARS), rng)
    else:
        try:
            metadata[key] = to_json(mutate(json.loads(metadata[key]), rng), rng)
        except ValueError:
            metadata[key] = b"x"
    return table.replace_schema_metadata(metadata)


def _column(table: pa.Table, rng: Random) -> pa.Table:
    index = rng.randrange(table.num_columns)
    name, column = table.column_names[index], table.column(index).combine_chunks()
    how = rng.randrange(6)
    if how == 0:
        return table.drop_columns([name])
    if how == 1:
        return table.set_column(index, rng.choice((name.upper(), "", "step", "[/bold]")), column)
    if how == 2:
        return table.append_column(name, column)
    values = column.to_pylist()
    if how == 3 and values:
        values[rng.randrange(len(values))] = None
    elif how == 4 and values:
        at = rng.randrange(len(values))
        old = values[at]
        values[at] = mutate_bytes(old, rng)[: len(old)].ljust(len(old), b"\0") if isinstance(old, bytes) else values[0]
    else:
        return table.set_column(index, name, _cast(column, rng))
    return table.set_column(index, name, pa.array(values, column.type))


def _cast(column: pa.Array, rng: Random) -> pa.Array:
    kinds = (pa.int64(), pa.uint8(), pa.string(), pa.large_string(), pa.binary(), pa.binary(3), pa.float64(), pa.null())
    kind = rng.choice(kinds)
    try:
        return column.cast(kind)
    except (pa.ArrowException, ValueError):
        return pa.nulls(len(column), kind)


def _rows(table: pa.Table, rng: Random) -> pa.Table:
    return rng.choice((table.slice(0, 0), table.slice(1), pa.concat_tables([table, table])))


def _write_file(trace: RoutingTrace, rng: Random, folder: Path) -> Path:
    path = folder / "trace.parquet"
    write_damaged(trace, rng, path)
    return path


def _write_folder(trace: RoutingTrace, rng: Random, folder: Path) -> Path:
    path = folder / "shards"
    path.mkdir()
    half = max(trace.n_tokens // 2, 1)
    damaged = rng.randrange(3)
    for number, part in enumerate((trace.select(slice(0, half)), trace.select(slice(half, None)))):
        file = path / f"part-{number:05d}.parquet"
        if number == damaged:
            write_damaged(part, rng, file)
        else:
            write_trace(part, file)
    if rng.random() < 0.2:
        (path / rng.choice(("x.parquet", ".hidden.parquet", "readme.txt", "_SUCCESS"))).write_bytes(b"x")
    return path


def _read_trace(path: Path) -> object:
    trace = read_trace(path)
    describe_trace(path)
    return trace.content_hash()


def _tables() -> st.SearchStrategy[LoadTable]:
    return traces(tokens=(1, 20)).map(LoadTable.count)


def _write_table(table: LoadTable, rng: Random, folder: Path) -> Path:
    path = folder / "load.json"
    write_load_table(table, path)
    path.write_bytes(write_json(json.loads(path.read_text()), rng))
    return path


def _read_table(path: Path) -> Any:
    """What is read can be summed and written."""
    table = read_load_table(path)
    write_load_table(table, path.parent / "again.json")
    assert (read_load_table(path.parent / "again.json").load_LE == table.load_LE).all()
    return table.load_LE.sum(axis=1)


TARGETS = (
    Target(
        name="trace-parquet", documents=lambda: traces(tokens=(1, 20)), write=_write_file, read=_read_trace, share=0.6
    ),
    Target(
        name="trace-folder", documents=lambda: traces(tokens=(2, 12)), write=_write_folder, read=_read_trace, share=0.3
    ),
    Target(name="load-table", documents=_tables, write=_write_table, read=_read_table),
)
