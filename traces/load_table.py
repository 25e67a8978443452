"""Counts of choices per layer and expert, without the tokens: all that some solvers and engines know.

Axes: L MoE layer, E expert.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.errors import MoecastError
from moecast.files import read_json, write_text
from moecast.traces.meta import TraceMeta
from moecast.traces.trace import RoutingTrace

_SCHEMA_VERSION = 1
MOST_CHOICES = (1 << 53) - 1
COUNTS_ONLY = "Counts only: no co-activation, fan-out or crossings can be had from them."
"""What the notes of a table say whose tokens were never recorded."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadTable:
    """How often each expert of each layer was chosen.

    Parameters
    ----------
    load_LE
        int64, not negative.
    meta
        The model and its sizes.

    Raises
    ------
    ValueError, TypeError
        Not [L, E] whole numbers, one is negative, or their sum reaches 2^53, beyond which sums of
        shares
        lose whole choices.
    """

    load_LE: npt.NDArray[np.int64]
    meta: TraceMeta

    def __post_init__(self) -> None:
        shape = (self.meta.layers, self.meta.experts)
        load_LE = whole_numbers("load_LE", self.load_LE, most=MOST_CHOICES, shape=shape).copy()
        total = load_LE.sum(dtype=np.float64)  # 67 million counts of 2^53 do not fit into 64 bits
        if total > MOST_CHOICES:
            raise ValueError(f"load_LE = {total:.3g} choices in all: fewer than 2^53")
        load_LE.flags.writeable = False
        object.__setattr__(self, "load_LE", load_LE)

    @classmethod
    def count(cls, source: RoutingTrace | Iterable[RoutingTrace]) -> LoadTable:
        """Count a trace, or batches of one.

        Raises
        ------
        ValueError
            No batches, or batches of different L, E or K.
        """
        from moecast.traces.statistics.counter import count_trace

        counter = count_trace(source)
        return cls(load_LE=counter.stats().load_LE, meta=counter.meta)


def write_load_table(table: LoadTable, path: str | Path) -> None:
    """Write a table as JSON, whole or not at all.

    Raises
    ------
    MoecastError
        The path cannot be written.
    """
    meta = dataclasses.asdict(table.meta)
    write_text(path, json.dumps({"schema": _SCHEMA_VERSION, **meta, "load": table.load_LE.tolist()}) + "\n")


def read_load_table(path: str | Path) -> LoadTable:
    """Read what `write_load_table` wrote.

    Raises
    ------
    MoecastError
        Not JSON, a field missing, or counts that do not fit the sizes.
    """
    value: Any = read_json(path)
    if not isinstance(value, dict) or value.get("schema") != _SCHEMA_VERSION or "load" not in value:
        raise MoecastError(f"not a load table of schema {_SCHEMA_VERSION}", file=path)
    try:
        return LoadTable(load_LE=_counts(value["load"]), meta=_meta(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise MoecastError(str(error), file=path, field="load table") from error


def _meta(value: dict[str, Any]) -> TraceMeta:
    fields = {field.name: value[field.name] for field in dataclasses.fields(TraceMeta) if field.name in value}
    for name, kind in (("model", str), ("notes", str), ("source", dict), ("config", dict), ("layer_ids", list)):
        if fields.get(name) is None and name in ("config", "layer_ids"):
            continue
        if type(fields.get(name, kind())) is not kind:
            raise ValueError(f"{name}: must be a {kind.__name__}")
    if fields.get("layer_ids") is not None:
        if any(type(layer) is not int for layer in fields["layer_ids"]):
            raise ValueError("layer_ids: must be whole numbers")
        fields["layer_ids"] = tuple(fields["layer_ids"])
    return TraceMeta(**fields)


def _counts(rows: Any) -> npt.NDArray[np.int64]:
    """The table, of lists of equal lengths that hold whole numbers only."""
    if type(rows) is not list or any(type(row) is not list or len(row) != len(rows[0]) for row in rows):
        raise ValueError("load: must be lists of equal lengths, one per layer")
    if any(set(map(type, row)) - {int} for row in rows):
        raise ValueError("load: must be whole numbers")
    for row in rows:  # Python's whole numbers have no limit
        for count in (min(row, default=0), max(row, default=0)):
            if not 0 <= count <= MOST_CHOICES:
                digits = len(str(count))
                shown = str(count) if digits <= 20 else f"a number of {digits} digits"
                raise ValueError(f"load = {shown}: a count is from 0 to {MOST_CHOICES}")
    return np.array(rows, np.int64)
