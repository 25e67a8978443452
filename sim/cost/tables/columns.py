"""Tables as columns: dataclasses of arrays whose names end in ``_R``, one value a row."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy.typing as npt

Table = TypeVar("Table")


def rows_of(table: Table, rows_R: npt.ArrayLike) -> Table:
    """Cut a table down to some rows, which are marked or numbered."""
    value: Any = table
    names = [item.name for item in fields(value) if item.name.endswith("_R")]
    cut: Table = replace(value, **{name: getattr(value, name)[rows_R] for name in names})
    return cut
