"""Rows of a flat table of routing, as readers give them, and what their columns must hold.

Axes: R row, W width (choices in a row).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.importers.pieces import Ints
from moecast.traces.meta import NO_CHOICE, PHASES

LABELS = ("sequence", "phase", "topic")
"""Columns that may be text; the others are numbers."""
COLUMNS = (
    "expert", "layer", "position", "sequence", "slot", "weight", "token_id", "step", "source_rank", "phase", "topic",
)  # fmt: skip
"""What a flat table may say; the first three it must."""

_MAX_WEIGHT = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rows:
    """Some rows of a table, as a reader gives them.

    Parameters
    ----------
    path, word, number_R
        The file, and what each row is called in it: "line" 7.
    columns
        By our name (`COLUMNS`): [R], or [R, W] for experts and weights of all choices. Whole
        numbers of any type, floating-point weights; labels may be lists of text or whole numbers.
    names
        What the file calls them.
    done
        The part of the file that is read with them, 0 to 1.
    remarks
        What the notes should say.
    """

    path: Path
    word: str
    number_R: Ints
    columns: Mapping[str, Any]
    names: Mapping[str, str]
    done: float
    remarks: tuple[str, ...] = ()

    def error(self, row: int, column: str, value: Any, rule: str) -> MoecastError:
        """What is wrong with a value."""
        field = f"{self.word} {int(self.number_R[row])}, {self.names.get(column, column)}"
        return MoecastError(rule, file=self.path, field=field, value=value)


def whole_numbers_of(rows: Rows, name: str, lowest: int, highest: int) -> npt.NDArray[np.int64]:
    """A column of whole numbers, in range."""
    values = np.asarray(rows.columns[name])
    if values.dtype.kind not in "iu":
        raise rows.error(0, name, None, f"must be whole numbers, not {values.dtype}")
    bad = np.argwhere((values < lowest) | (values > highest))
    if len(bad):
        value = int(values[tuple(bad[0])])
        raise rows.error(int(bad[0][0]), name, value, f"must be from {lowest} to {highest}")
    return values.astype(np.int64)


def phases_of(rows: Rows) -> npt.NDArray[np.uint8]:
    """The phases, by number."""
    phases = []
    for row, value in enumerate(rows.columns["phase"]):
        if not isinstance(value, str) or value not in PHASES:
            raise rows.error(
                row, "phase", value if isinstance(value, str) else int(value), f"must be {', '.join(PHASES)}"
            )
        phases.append(PHASES.index(value))
    return np.array(phases, np.uint8)


def weights_of(rows: Rows, experts_RW: npt.NDArray[np.uint16]) -> npt.NDArray[np.float16]:
    """Gate weights as numbers that float16 holds; of no choice they are 0, whatever the table says."""
    raw = np.asarray(rows.columns["weight"])
    if raw.dtype.kind not in "fiu":
        raise rows.error(0, "weight", None, f"must be numbers, not {raw.dtype}")
    raw = raw.astype(np.float64)
    if raw.ndim == 1:
        raw = raw[:, None]
    if raw.shape != experts_RW.shape:
        raise rows.error(0, "weight", raw.shape[1], f"weights in a row of {experts_RW.shape[1]} choices")
    weights_RW = np.where(experts_RW == NO_CHOICE, 0.0, raw)
    bad = np.argwhere(~(np.abs(weights_RW) <= _MAX_WEIGHT))  # so that what is no number is bad too
    if len(bad):
        value = float(weights_RW[tuple(bad[0])])
        raise rows.error(int(bad[0][0]), "weight", value, f"must be a finite number up to {_MAX_WEIGHT:.0f}")
    return weights_RW.astype(np.float16)
