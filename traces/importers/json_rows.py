"""Rows of a flat table out of JSON records: one record a row, its keys the columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moecast.errors import MoecastError
from moecast.traces.importers.event_rows import LABELS, Rows
from moecast.traces.importers.json_records import Record
from moecast.traces.importers.provenance import size_of
from moecast.traces.meta import MAX_CHOICES

_BATCH_ROWS = 1 << 14
# of the file; what JSON takes in memory is some 10 times that, or 32 where it is meant to
_BATCH_BYTES = 4 << 20
_MAX_TEXT = 1000
_LISTED = 20
_LISTS = ("expert", "weight")


def json_rows(path: Path, records: Iterable[Record], names: Mapping[str, str]) -> Iterator[Rows]:
    """Make rows of records, some thousand at a time.

    Parameters
    ----------
    names
        The records' key for each of our columns.

    Raises
    ------
    MoecastError
        A record without one of the keys, or a value of another kind.
    """
    for batch in _batches(records, size_of(path)):
        numbers = [_number(record) for record in batch]
        word = batch[0].where.rpartition(" ")[0]
        columns: dict[str, Any] = {}
        for column, key in names.items():
            values = [record.value.get(key, _NOTHING) for record in batch]
            if _NOTHING in values:
                record = batch[values.index(_NOTHING)]
                raise MoecastError(no_column(column, record.value), file=path, field=record.where, value=key)
            columns[column] = array_of(values, column, partial(_where, batch, key), path)
        yield Rows(
            path=path,
            word=word,
            number_R=np.array(numbers, np.int64),
            columns=columns,
            names=names,
            done=batch[-1].done,
            remarks=tuple(remark for record in batch for remark, _ in record.remarks),
        )


_NOTHING = object()


def _batches(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    batch: list[Record] = []
    begin = 0.0
    for record in records:
        batch.append(record)
        if len(batch) >= _BATCH_ROWS or (record.done - begin) * size > _BATCH_BYTES:
            yield batch
            batch, begin = [], record.done
    if batch:
        yield batch


def _number(record: Record) -> int:
    number = record.where.rpartition(" ")[2]
    return int(number) if number.isdigit() else 0  # a document that is one record


def _where(batch: list[Record], key: str, row: int) -> str:
    return f"{batch[row].where}, {key}"


def peeked(records: Iterator[Record]) -> tuple[Record | None, Iterator[Record]]:
    """The first record, and all of them."""
    first = next(records, None)
    return first, records if first is None else itertools.chain([first], records)


def no_column(column: str, there: Collection[str]) -> str:
    """The rule that a column must be there, with those that are."""
    listed = ", ".join(f"{name!a:.60}" for name in itertools.islice(there, _LISTED))
    more = f" and {len(there) - _LISTED} more" if len(there) > _LISTED else ""
    return f"no such column, for {column}; there are: {listed}{more}"


def array_of(values: list[Any], column: str, where: Callable[[int], str], path: Path) -> Any:
    """A column's values as an array, [R] or [R, W]; text stays a list.

    Parameters
    ----------
    where
        Names a row for a message.

    Raises
    ------
    MoecastError
        A value of another kind than the column's, or than that of the rows before.
    """
    if column in LABELS:
        for row, value in enumerate(values):
            if not (type(value) is str and len(value) <= _MAX_TEXT) and not _is_whole(value):
                rule = f"must be a whole number or text of at most {_MAX_TEXT} characters"
                raise MoecastError(rule, file=path, field=where(row), value=value)
        return values
    flat, width = values, 0
    if column in _LISTS and type(values[0]) is list:
        flat, width = _flat(values, where, path)
    if set(map(type, flat)) <= ({int, float} if column == "weight" else {int}):
        try:
            array = np.array(flat, np.float64 if column == "weight" else np.int64)
        except OverflowError:
            pass  # found below
        else:
            return array.reshape(-1, width) if width else array
    at = next(at for at, value in enumerate(flat) if not _is_whole(value) and not _is_weight(value, column))
    what = "a number" if column == "weight" else "a whole number of at most 64 bits"
    raise MoecastError(f"must be {what}", file=path, field=where(at // (width or 1)), value=flat[at])


def _flat(values: list[Any], where: Callable[[int], str], path: Path) -> tuple[list[Any], int]:
    """Lists of one length as one list, and that length."""
    width = len(values[0])
    if not 1 <= width <= MAX_CHOICES:
        rule = f"must be a list of 1 to {MAX_CHOICES}"
        raise MoecastError(rule, file=path, field=where(0), value=values[0])
    for row, value in enumerate(values):
        if type(value) is not list or len(value) != width:
            rule = f"must be a list of {width}, as before"
            raise MoecastError(rule, file=path, field=where(row), value=value)
    return list(itertools.chain.from_iterable(values)), width


def _is_weight(value: Any, column: str) -> bool:
    return column == "weight" and type(value) is float


def _is_whole(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63
