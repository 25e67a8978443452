"""Files of measured rows: serving runs and training steps, in the columns of those that ship."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moecast.errors import MoecastError
from moecast.files import read_text

Kind = Literal["serving", "training"]
Fields = Mapping[str, str]

SHIPPED = Path(__file__).resolve().parent / "rows"
"""Rows of others' runs; rows/README.md says whose."""
NEEDED: Mapping[Kind, tuple[str, ...]] = {
    "serving": ("id", "model", "gpu", "isl", "osl", "tpot_mean_ms"),
    "training": ("id", "model", "gpu", "value"),
}
"""Columns by which a file is known, and which no row can do without."""
MOST_ROWS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFile:
    """The rows of a file, by column; columns that it lacks are empty."""

    file: Path
    kind: Kind
    rows: tuple[Fields, ...]


def read_rows(file: Path) -> RowFile:
    """Read a file of serving or training rows.

    Raises
    ------
    MoecastError
        It is neither, a row has more fields than there are columns, two rows have one id, or one
        has none.
    """
    reader = csv.DictReader(io.StringIO(read_text(file)), restval="", strict=True)
    kind = _kind(reader.fieldnames or (), file)
    rows: list[Fields] = []
    try:
        for row in reader:
            if None in row:
                rule = "has more fields than the file has columns"
                raise MoecastError(rule, file=file, field=f"row {len(rows) + 1}")
            rows.append({name: (value or "").strip() for name, value in row.items()})
            if len(rows) > MOST_ROWS:
                raise MoecastError(f"at most {MOST_ROWS:,} rows", file=file)
    except csv.Error as error:
        raise MoecastError(f"row {len(rows) + 1}: {error}", file=file) from error
    _check_ids(rows, file)
    return RowFile(file=file, kind=kind, rows=tuple(rows))


def _kind(columns: object, file: Path) -> Kind:
    names = set(columns) if isinstance(columns, (list, tuple)) else set()
    for kind, needed in NEEDED.items():
        if names >= set(needed):
            return kind
    told = "; ".join(f"{kind} rows have {', '.join(needed)}" for kind, needed in NEEDED.items())
    raise MoecastError(f"neither serving nor training rows, by its columns: {told}", file=file)


def _check_ids(rows: list[Fields], file: Path) -> None:
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if not row["id"]:
            raise MoecastError("is empty", file=file, field=f"row {number}: id")
        if row["id"] in seen:
            raise MoecastError("stands twice", file=file, field="id", value=row["id"])
        seen.add(row["id"])
