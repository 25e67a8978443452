"""Flat tables of routing: a row for a token at a layer, its experts in one column, or a row for each choice.

Published layouts are known by their columns (`table_layouts`); of others the user says them
(``--columns``). Read from ``.npz`` (arrays of equal length), JSON lines or a JSON list of records,
``.csv`` with a header, and Parquet. Axes: R row, W choices in a row.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moecast.errors import MoecastError
from moecast.traces.importers.archive import first_line, open_archive, zip_names
from moecast.traces.importers.arrays import read_entry
from moecast.traces.importers.assemble import Layout
from moecast.traces.importers.event_rows import COLUMNS, LABELS, Rows
from moecast.traces.importers.events import import_events
from moecast.traces.importers.importer import ImportedTrace
from moecast.traces.importers.json_records import Record, beginning, json_records
from moecast.traces.importers.json_rows import array_of, json_rows, no_column
from moecast.traces.importers.npz import named_arrays
from moecast.traces.importers.options import ImportOptions
from moecast.traces.importers.table_layouts import layout_of
from moecast.traces.meta import MAX_CHOICES

_LAYOUT = Layout(importer="table", engine="", rows="some", numbered_sequences=True)
_BATCH_ROWS = 1 << 17
_BATCH_BYTES = 8 << 20  # of text
_NO_ROW = "Records with none of the columns are left out"
_MAX_DIGITS = 20
_MAX_LINE = 1 << 20
_VALUE_BYTES = 32  # a value decoded, in numbers beside it, and in the row


class TableImporter:
    """Reads flat tables of a known layout, or of any whose columns are said."""

    name = "table"

    def recognises(self, path: Path) -> bool:
        """A NumPy archive with the columns of a known layout."""
        return layout_of(zip_names(path)) is not None

    def open(self, paths: Sequence[Path], options: ImportOptions) -> ImportedTrace:
        """Take the files' rows as those of one table."""
        known = layout_of(zip_names(paths[0])) if options.columns is None else None
        if known is None and options.columns is None:
            rule = "not a table of a known layout: say its columns with --columns"
            raise MoecastError(rule, file=paths[0])
        columns = known.columns if known is not None else checked_columns(options.columns or {})
        rows = itertools.chain.from_iterable(_rows(path, columns, options) for path in paths)
        return import_events(paths, rows, _LAYOUT, options, phase=known.phase if known else None)


def checked_columns(columns: Mapping[str, str]) -> Mapping[str, str]:
    """The mapping, where it names what a table must have and nothing else.

    Raises
    ------
    MoecastError
        A name that is not ours, or one of expert, layer and position missing.
    """
    for name in columns:
        if name not in COLUMNS:
            raise MoecastError(f"one of {', '.join(COLUMNS)}", field="columns", value=name)
    for name in COLUMNS[:3]:
        if name not in columns:
            rule = f"must say which column holds {name}"
            raise MoecastError(rule, field="columns", value=_said(columns))
    return columns


def _said(columns: Mapping[str, str]) -> str:
    return ",".join(f"{name}={column}" for name, column in columns.items())


def _rows(path: Path, columns: Mapping[str, str], options: ImportOptions) -> Iterator[Rows]:
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except FileNotFoundError as error:
        raise MoecastError("no such file", file=path) from error
    except OSError as error:
        raise MoecastError(f"cannot be read ({error.strerror})", file=path) from error
    if head == b"PAR1":
        return _of_parquet(path, columns, options)
    if head.startswith(b"PK"):
        return _of_npz(path, columns, options)
    if beginning(path):
        return json_rows(
            path, _with_columns(path, json_records(path, limit_bytes=options.most_bytes), columns), columns
        )
    return _of_csv(path, columns)


def _terms(column: str, there: Collection[str]) -> list[str]:
    """The columns of the file that a column is the sum of."""
    return [column] if column in there else column.split("+")


def _of_npz(path: Path, columns: Mapping[str, str], options: ImportOptions) -> Iterator[Rows]:
    with open_archive(path, "NumPy archive") as archive:
        members = named_arrays(archive, path, options.most_bytes)
        arrays: dict[str, Any] = {}
        for name, column in columns.items():
            for term in _terms(column, members):
                if term not in members:
                    raise MoecastError(no_column(name, members), file=path, value=term)
            kinds = "iuU" if name in LABELS else "iuf" if name == "weight" else "iu"
            axes = (1, 2) if name in ("expert", "weight") else (1,)
            parts = [read_entry(archive, members[t], path, t, axes, kinds) for t in _terms(column, members)]
            arrays[name] = parts[0] if len(parts) == 1 else _sum(parts, path, column)
    rows = len(arrays["expert"])
    for name, array in arrays.items():
        if len(array) != rows:
            rule = f"{len(array)} rows, where {columns['expert']} has {rows}: a table's columns are equally long"
            raise MoecastError(rule, file=path, field=columns[name])
    for begin in range(0, rows, _BATCH_ROWS):
        end = min(begin + _BATCH_ROWS, rows)
        yield Rows(
            path=path,
            word="row",
            number_R=np.arange(begin, end),
            columns={name: array[begin:end] for name, array in arrays.items()},
            names=columns,
            done=end / rows,
        )


def _sum(parts: list[Any], path: Path, column: str) -> Any:
    if len({part.shape for part in parts}) > 1:
        raise MoecastError("columns of different lengths cannot be added", file=path, field=column)
    for part in parts:
        if part.size and not -(2**32) < int(part.min()) <= int(part.max()) < 2**32:
            rule = "numbers of more than 32 bits cannot be added"
            raise MoecastError(rule, file=path, field=column)
    return np.sum([part.astype(np.int64) for part in parts], axis=0)


def _with_columns(path: Path, records: Iterator[Record], columns: Mapping[str, str]) -> Iterator[Record]:
    """The records but those with none of the columns, such as a first line about the run."""
    left_out: Record | None = None
    rows = 0
    for record in records:
        if not any(column in record.value for column in columns.values()):
            left_out = left_out or record
            continue
        yield record if left_out is None else record._replace(remarks=((_NO_ROW, ""),))
        rows += 1
    if left_out is not None and not rows:
        rule = no_column("expert", left_out.value)
        raise MoecastError(rule, file=path, field=left_out.where, value=columns["expert"])


def _of_csv(path: Path, columns: Mapping[str, str]) -> Iterator[Rows]:
    """Rows of text with a header; a row holds one choice."""
    try:
        with path.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(iter(lambda: file.readline(_MAX_LINE), ""))
            header = next(lines, [])
            for name, column in columns.items():
                if column not in header:
                    raise MoecastError(no_column(name, header), file=path, value=column[:100])
            places = {name: header.index(column) for name, column in columns.items()}
            size = max(1, path.stat().st_size)
            batch: list[tuple[int, list[str]]] = []
            begin = 0
            for cells in lines:
                if cells:
                    batch.append((lines.line_num, cells))
                if len(batch) == _BATCH_ROWS or raw.tell() - begin > _BATCH_BYTES:
                    yield _of_cells(path, columns, places, batch, raw.tell() / size)
                    batch, begin = [], raw.tell()
            if batch:
                yield _of_cells(path, columns, places, batch, 1.0)
    except (UnicodeDecodeError, csv.Error) as error:
        raise MoecastError("neither NumPy, JSON, Parquet nor CSV as UTF-8", file=path) from error


def _of_cells(
    path: Path,
    columns: Mapping[str, str],
    places: Mapping[str, int],
    batch: Sequence[tuple[int, list[str]]],
    done: float,
) -> Rows:
    for number, cells in batch:
        if len(cells) <= max(places.values()):
            raise MoecastError(f"{len(cells)} cells, too few", file=path, field=f"line {number}")
    values: dict[str, Any] = {}
    for name, place in places.items():
        texts = [cells[place].strip() for _, cells in batch]
        made = texts if name in LABELS else [_number(text, name) for text in texts]
        values[name] = array_of(made, name, partial(_line_of, batch, columns[name]), path)
    numbers = np.array([number for number, _ in batch])
    return Rows(path=path, word="line", number_R=numbers, columns=values, names=columns, done=done)


def _number(text: str, name: str) -> Any:
    """The number of a cell; the text where it is none."""
    make: Callable[[str], Any] = float if name == "weight" else int
    try:
        return make(text) if len(text) <= _MAX_DIGITS + 20 * (name == "weight") else text
    except ValueError:
        return text


def _of_parquet(path: Path, columns: Mapping[str, str], options: ImportOptions) -> Iterator[Rows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as raw, pq.ParquetFile(raw) as file:
            there = file.schema_arrow.names
            for name, column in columns.items():
                if column not in there:
                    raise MoecastError(no_column(name, there), file=path, value=column[:100])
            _check_groups(file.metadata, path, options.most_bytes)
            total, begin = max(1, file.metadata.num_rows), 0
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(dict.fromkeys(columns.values()))):
                numbers = np.arange(begin, begin + batch.num_rows)
                begin += batch.num_rows
                values = {
                    name: _of_arrow(
                        batch.column(column), name, partial(_row_of, int(begin - len(numbers)), column), path
                    )
                    for name, column in columns.items()
                }
                yield Rows(path=path, word="row", number_R=numbers, columns=values, names=columns, done=begin / total)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise MoecastError(f"not a whole Parquet file ({first_line(error)})", file=path) from error


def _check_groups(metadata: Any, path: Path, most_bytes: int) -> None:
    """Refuse row groups that claim more than may be read at once: pages may hold many values in few bytes."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        values = sum(group.column(place).num_values for place in range(group.num_columns))
        if max(group.total_byte_size, values * _VALUE_BYTES) > most_bytes:
            rule = f"row group {number} holds {values:,} values, more than can be read at once"
            raise MoecastError(rule, file=path)


def _of_arrow(array: Any, name: str, where: Callable[[int], str], path: Path) -> Any:
    """A column of a batch, [R] or [R, W]."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, width = array.type, 0
    flat = array
    if name in ("expert", "weight") and (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and len(array):
        length_R = pc.list_value_length(array).fill_null(-1).to_numpy()
        width = int(length_R[0])
        if not 1 <= width <= MAX_CHOICES or (length_R != width).any():
            row = int(np.argmax(length_R != width)) if 1 <= width <= MAX_CHOICES else 0
            rule = f"must be a list of {width}, as before" if row else f"must be a list of 1 to {MAX_CHOICES}"
            raise MoecastError(rule, file=path, field=where(row), value=int(length_R[row]))
        flat = array.flatten()
    numeric = pa.types.is_integer(flat.type) or (name == "weight" and pa.types.is_floating(flat.type))
    if numeric and not flat.null_count:
        numbers = flat.to_numpy(zero_copy_only=False)
        return numbers.reshape(-1, width) if width else numbers
    return array_of(array.to_pylist(), name, where, path) if len(array) else np.zeros(0, np.int64)


def _line_of(batch: Sequence[tuple[int, list[str]]], column: str, row: int) -> str:
    return f"line {batch[row][0]}, {column}"


def _row_of(first: int, column: str, row: int) -> str:
    return f"row {first + row}, {column}"
