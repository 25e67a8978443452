"""The rows of flat tables, checked and kept in a file of records, so that they may be more than memory holds.

Axes: R row, W width (choices in a row).
"""

from __future__ import annotations

import bisect
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.importers.event_rows import COLUMNS, Rows, phases_of, weights_of, whole_numbers_of
from moecast.traces.importers.options import ImportOptions
from moecast.traces.importers.pieces import COLUMN_RANGES
from moecast.traces.meta import MAX_CHOICES, MAX_EXPERTS, MAX_TOPICS, NO_CHOICE, PHASES

_RANGES = {
    "position": COLUMN_RANGES["position_T"],
    "layer": (0, MAX_EXPERTS),
    "slot": (0, MAX_CHOICES - 1),
    "token_id": COLUMN_RANGES["token_id_T"],
    "step": COLUMN_RANGES["step_T"],
    "source_rank": COLUMN_RANGES["source_rank_T"],
}
OF_TOKEN = {"token_id": "<i4", "step": "<u4", "source_rank": "<u2", "phase": "u1", "topic": "<i2"}
_SORT_BYTES = 64  # a row's keys, their order, and copies while they are sorted
_NAME_BYTES = 200  # a name in a dict and a list


class _Names:
    """Numbers for names, in the order in which they are first seen."""

    def __init__(self, most: int, what: str) -> None:
        self.names: list[Any] = []
        self._number_of: dict[Any, int] = {}
        self._most, self._what = most, what

    def numbers(self, rows: Rows, column: str) -> npt.NDArray[np.int64]:
        """The number of each row's name."""
        values = rows.columns[column]
        if isinstance(values, np.ndarray):
            once, first, place = np.unique(values, return_index=True, return_inverse=True)
            order = np.argsort(first)
            number_of = np.empty(len(once), np.int64)
            number_of[order] = [self._number(rows, int(first[at]), column, once[at].item()) for at in order.tolist()]
            return number_of[place.ravel()]
        return np.array([self._number(rows, row, column, value) for row, value in enumerate(values)], np.int64)

    def _number(self, rows: Rows, row: int, column: str, name: Any) -> int:
        known = self._number_of.get(name)
        if known is None:
            if isinstance(name, str) and not name.isprintable():
                raise rows.error(row, column, name, "must be text that can be printed")
            if len(self.names) >= self._most:
                raise rows.error(row, column, name, f"more than {self._most} {self._what}")
            known = self._number_of[name] = len(self.names)
            self.names.append(name)
        return known


class EventTable:
    """Checks rows and keeps them in a file of records that has no name and goes with the process."""

    def __init__(self, options: ImportOptions, phase: str | None, file: IO[bytes]) -> None:
        self._limit_bytes = options.most_bytes
        self._phase = options.phase or phase or "prefill"
        self._phase_told = options.phase is not None or phase is not None
        self._file = file
        self._record: np.dtype[Any] | None = None
        self._shape: tuple[int, ...] = ()
        self._slotted = False
        self._starts: list[int] = []
        self._of_start: list[Rows] = []
        self._count = 0
        self._seen: set[str] = set()
        self._missing: set[str] = set()
        self._remarks: dict[str, None] = {}
        self._sequences = _Names(min(2**32, max(1, self._limit_bytes // _NAME_BYTES)), "sequences, as memory goes")
        self._topics = _Names(MAX_TOPICS, "topics")

    def add(self, rows: Rows) -> None:
        """Check rows and keep them.

        Raises
        ------
        MoecastError
            A value out of range, or of another kind or width than before.
        """
        count = len(rows.number_R)
        if not count:
            return
        experts_RW = self._experts(rows)
        record = np.zeros(count, self._record)
        record["expert"] = experts_RW
        record["number"] = rows.number_R
        for name, (lowest, highest) in _RANGES.items():
            if name in rows.columns:
                record[name] = whole_numbers_of(rows, name, lowest, highest)
        if "sequence" in rows.columns:
            record["sequence"] = self._sequences.numbers(rows, "sequence")
        if "topic" in rows.columns:
            record["topic"] = self._topics.numbers(rows, "topic")
        if "phase" in rows.columns:
            record["phase"] = phases_of(rows)
        if "weight" in rows.columns:
            record["weight"] = weights_of(rows, experts_RW)
        for name in COLUMNS:
            (self._seen if name in rows.columns else self._missing).add(name)
        self._remarks |= dict.fromkeys(rows.remarks)
        self._starts.append(self._count)
        self._of_start.append(dataclasses.replace(rows, number_R=rows.number_R[:0], columns={}, remarks=()))
        self._count += count
        if self._count * _SORT_BYTES > self._limit_bytes:
            raise MoecastError(
                f"more than the {self._limit_bytes // _SORT_BYTES:,} rows that can be sorted in the memory at hand",
                file=rows.path,
            )
        try:
            left = memoryview(record.tobytes())
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise MoecastError(
                f"its rows cannot be kept in {tempfile.gettempdir()} while they are sorted "
                f"({error.strerror}): TMPDIR names another folder",
                file=rows.path,
            ) from error

    def _experts(self, rows: Rows) -> npt.NDArray[np.uint16]:
        raw = np.asarray(rows.columns["expert"])
        shape, slotted = raw.shape[1:], "slot" in rows.columns
        width = shape[0] if shape else 1
        if self._record is None:
            self._shape, self._slotted = shape, slotted
            place = [("sequence", "<u4"), ("position", "<u4"), ("layer", "<u2"), ("slot", "<u2"), ("number", "<u8")]
            choices = [("expert", "<u2", (width,)), ("weight", "<f2", (width,))]
            self._record = np.dtype([*place, *choices, *OF_TOKEN.items()])
        if not 1 <= width <= MAX_CHOICES:
            raise rows.error(0, "expert", width, f"from 1 to {MAX_CHOICES} choices in a row")
        if (shape, slotted) != (self._shape, self._slotted):
            first = self._shape[0] if self._shape else "one"
            raise rows.error(0, "expert", width, f"choices in a row, where rows before have {first}")
        experts_RW = whole_numbers_of(rows, "expert", -1, NO_CHOICE).astype(np.uint16).reshape(-1, width)
        sorted_RW = np.sort(experts_RW, axis=1)
        again_R = ((sorted_RW[:, 1:] == sorted_RW[:, :-1]) & (sorted_RW[:, 1:] != NO_CHOICE)).any(axis=1)
        if again_R.any():
            row = int(np.argmax(again_R))
            raise rows.error(row, "expert", experts_RW[row].tolist(), "an expert is chosen twice")
        return experts_RW

    def records(self, paths: Sequence[Path]) -> npt.NDArray[Any]:
        """All rows, as they came.

        Raises
        ------
        MoecastError
            There are none.
        """
        if self._record is None:
            raise MoecastError("holds no rows of routing", file=paths[0])
        return np.memmap(self._file, self._record, "r", shape=(self._count,))

    # What the sorted tokens ask of the table.

    @property
    def long(self) -> bool:
        """Whether a row is one choice, and its place among a token's choices is told by nothing but the order."""
        return not self._shape and not self._slotted

    def kept(self, name: str) -> bool:
        """Whether every row has the column."""
        return name in self._seen - self._missing

    def leave_out(self, name: str) -> None:
        """Keep nothing of a column, and say so."""
        self._seen.discard(name)
        self._remarks[f"{name} is left out, since rows of one token differ in it"] = None

    @property
    def topics(self) -> tuple[str, ...]:
        """Names of the topics, by number."""
        return tuple(name if type(name) is str else f"topic {name}" for name in self._topics.names)

    @property
    def phase(self) -> int:
        """The phase of rows that name none."""
        return PHASES.index(self._phase)

    def remarks(self) -> tuple[tuple[str, str], ...]:
        """What the notes should say."""
        said = [(remark, "") for remark in self._remarks]
        some = [name for name in COLUMNS if name in self._seen & self._missing]
        said += [(f"{name} is left out, since only some rows have it", "") for name in some]
        if not self.kept("phase") and not self._phase_told:
            said.append((f"Without phases all tokens are taken as {self._phase}", ""))
        if "sequence" not in self._seen:
            said.append(("Without a column for it all tokens are one sequence", ""))
        return tuple(said)

    def source_of(self, row: int) -> Rows:
        """The rows that a row came with, emptied: its file and words."""
        return self._of_start[bisect.bisect_right(self._starts, row) - 1]

    def error(self, record: Any, row: int, rule: str) -> MoecastError:
        """What is wrong with a row that was found to be so when all were there."""
        rows, names = self.source_of(row), self._sequences.names
        token = f"{rows.names.get('position', 'position')} {int(record['position'])}"
        if names:
            token = f"{rows.names.get('sequence', 'sequence')} {str(names[int(record['sequence'])])!a:.60}, {token}"
        return MoecastError(f"{rule} ({token})", file=rows.path, field=f"{rows.word} {int(record['number'])}")
