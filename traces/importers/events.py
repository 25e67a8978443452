"""Flat tables of routing, a row for a token at a layer or for one of its choices: rows in any order become tokens.

Rows are checked and kept on disk as they come, so that a table may be larger than memory; only the keys that sort them
are held, about 64 bytes a row, and refused beforehand where that is more than may be taken. Tokens stand in the order
in which the table first names them. Axes: R row, T token, L layer, K choice, W width (choices in a row).
"""

from __future__ import annotations

import bisect
import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.importers.assemble import Layout, assemble
from moecast.traces.importers.importer import ImportedTrace
from moecast.traces.importers.options import ImportOptions
from moecast.traces.importers.pieces import COLUMN_RANGES, Ints, Piece
from moecast.traces.importers.provenance import Reading
from moecast.traces.meta import MAX_CHOICES, MAX_EXPERTS, MAX_LAYERS, NO_CHOICE, PHASES

LABELS = ("sequence", "phase", "topic")
"""Columns that may be text; the others are numbers."""
COLUMNS = (
    "expert", "layer", "position", "sequence", "slot", "weight", "token_id", "step", "source_rank", "phase", "topic",
)  # fmt: skip
"""What a flat table may say; the first three it must."""

_RANGES = {
    "position": COLUMN_RANGES["position_T"],
    "layer": (0, MAX_EXPERTS),
    "slot": (0, MAX_CHOICES - 1),
    "token_id": COLUMN_RANGES["token_id_T"],
    "step": COLUMN_RANGES["step_T"],
    "source_rank": COLUMN_RANGES["source_rank_T"],
}
_OF_TOKEN = {"token_id": "<i4", "step": "<u4", "source_rank": "<u2", "phase": "u1", "topic": "<i2"}
_MAX_TOPICS = 2**15 - 1
_MAX_WEIGHT = float(np.finfo(np.float16).max)
_SORT_BYTES = 64  # a row's keys, their order, and copies while they are sorted
_NAME_BYTES = 200  # a name in a dict and a list
_PIECE_BYTES = 16 << 20
_MAX_PADDING, _FREE_PADDING = 32, 1 << 26  # places for choices, a row of one: more would write a file of empty places


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rows:
    """Some rows of a table, as a reader gives them.

    Parameters
    ----------
    path, word, number_R
        The file, and what each row is called in it: "line" 7.
    columns
        By our name (`COLUMNS`): [R], or [R, W] for experts and weights of all choices. Whole numbers of any type,
        floating-point weights; labels may be lists of text or whole numbers.
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


def import_events(
    paths: Sequence[Path],
    rows: Iterable[Rows],
    layout: Layout,
    options: ImportOptions,
    *,
    experts: int | None = None,
    phase: str | None = None,
) -> ImportedTrace:
    """Sort the rows of all files into tokens, and give the trace they make.

    Parameters
    ----------
    rows
        Of all files in order; read once.
    experts
        E where the files say it.
    phase
        Of all tokens, where the table has no such column and the format says it.

    Raises
    ------
    MoecastError
        A value out of range, two rows for one choice, a token without a row for some layer, or too many rows.
    """
    reading = Reading(paths, options.progress, passes=3)
    with tempfile.TemporaryFile(buffering=0) as file:  # its mapping outlives it; a full disk shows when it is written
        table = _Table(options, phase, file)
        for some in rows:
            table.add(some)
            reading.advance(some.path, some.done)
        tokens = table.sorted(paths)
    reading.next_pass()
    return assemble(
        paths, tokens.pieces, layout, options, experts=experts, layer_ids=tuple(tokens.layer_ids.tolist()), passes=3
    )


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


class _Table:
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
        self._topics = _Names(_MAX_TOPICS, "topics")

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
                record[name] = _whole(rows, name, lowest, highest)
        if "sequence" in rows.columns:
            record["sequence"] = self._sequences.numbers(rows, "sequence")
        if "topic" in rows.columns:
            record["topic"] = self._topics.numbers(rows, "topic")
        if "phase" in rows.columns:
            record["phase"] = _phases(rows)
        if "weight" in rows.columns:
            record["weight"] = _weights(rows, experts_RW)
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
                f"its rows cannot be kept in {tempfile.gettempdir()} while they are sorted ({error.strerror}): "
                "TMPDIR names another folder",
                file=rows.path,
            ) from error

    def _experts(self, rows: Rows) -> npt.NDArray[np.uint16]:
        raw = np.asarray(rows.columns["expert"])
        shape, slotted = raw.shape[1:], "slot" in rows.columns
        width = shape[0] if shape else 1
        if self._record is None:
            self._shape, self._slotted = shape, slotted
            self._record = np.dtype(
                [("sequence", "<u4"), ("position", "<u4"), ("layer", "<u2"), ("slot", "<u2"), ("number", "<u8"),
                 ("expert", "<u2", (width,)), ("weight", "<f2", (width,)), *_OF_TOKEN.items()]
            )  # fmt: skip
        if not 1 <= width <= MAX_CHOICES:
            raise rows.error(0, "expert", width, f"from 1 to {MAX_CHOICES} choices in a row")
        if (shape, slotted) != (self._shape, self._slotted):
            first = self._shape[0] if self._shape else "one"
            raise rows.error(0, "expert", width, f"choices in a row, where rows before have {first}")
        experts_RW = _whole(rows, "expert", -1, NO_CHOICE).astype(np.uint16).reshape(-1, width)
        sorted_RW = np.sort(experts_RW, axis=1)
        again_R = ((sorted_RW[:, 1:] == sorted_RW[:, :-1]) & (sorted_RW[:, 1:] != NO_CHOICE)).any(axis=1)
        if again_R.any():
            row = int(np.argmax(again_R))
            raise rows.error(row, "expert", experts_RW[row].tolist(), "an expert is chosen twice")
        return experts_RW

    def sorted(self, paths: Sequence[Path]) -> _Tokens:
        """The rows' tokens.

        Raises
        ------
        MoecastError
            No rows, two rows for one choice, or a token without a row for some layer.
        """
        if self._record is None:
            raise MoecastError("holds no rows of routing", file=paths[0])
        return _Tokens(self, np.memmap(self._file, self._record, "r", shape=(self._count,)))

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
        return tuple(name if type(name) is str else f"topic {name}" for name in self._topics.names)

    @property
    def phase(self) -> int:
        return PHASES.index(self._phase)

    def remarks(self) -> tuple[tuple[str, str], ...]:
        """What the notes should say."""
        said = [(remark, "") for remark in self._remarks]
        said += [(f"{name} is left out, since only some rows have it", "") for name in COLUMNS
                if name in self._seen & self._missing]  # fmt: skip
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


class _Tokens:
    """The table's rows in order of token, layer and choice."""

    def __init__(self, table: _Table, records: npt.NDArray[Any]) -> None:
        self._table, self._records = table, records
        sequence_R, position_R, layer_R, slot_R = (
            np.ascontiguousarray(records[name]) for name in ("sequence", "position", "layer", "slot")
        )
        self.layer_ids = np.unique(layer_R)
        if len(self.layer_ids) > MAX_LAYERS:
            raise table.error(records[0], 0, f"the table has {len(self.layer_ids)} layers, more than {MAX_LAYERS}")
        order_R = np.lexsort((slot_R, layer_R, position_R, sequence_R))
        sequence_R, position_R, layer_R, slot_R = (
            column[order_R] for column in (sequence_R, position_R, layer_R, slot_R)
        )
        token_R = _changes(sequence_R) | _changes(position_R)
        cell_R = token_R | _changes(layer_R)
        if table.long:
            start = np.flatnonzero(cell_R)
            count = np.diff(np.append(start, len(cell_R)))
            if int(count.max()) > MAX_CHOICES:
                self._fail(order_R, start[np.argmax(count)], f"more than {MAX_CHOICES} rows for one layer of a token")
            slot_R = (np.arange(len(cell_R)) - np.repeat(start, count)).astype(np.uint16)
        elif not (new_R := cell_R | _changes(slot_R)).all():
            at = np.argmin(new_R)
            self._fail(order_R, at, f"a second row for the same token and layer {layer_R[at]}")
        self._order_R = order_R
        if not table.long:
            slot_R = self._numbered(slot_R, cell_R)
        self._slot_R = slot_R
        self._slots = int(slot_R.max()) + 1
        if int(cell_R.sum()) * self._slots > max(_MAX_PADDING * len(slot_R), _FREE_PADDING):
            rule = f"choice {self._slots - 1} of a token, where nearly all have fewer"
            self._fail(order_R, np.argmax(slot_R), rule)
        self._start_T = np.flatnonzero(token_R)
        self._check_layers(layer_R, cell_R)
        self._check_agreement(token_R)
        self._by_first_T = np.argsort(np.minimum.reduceat(order_R, self._start_T))
        _, first, place = np.unique(sequence_R[self._start_T][self._by_first_T], return_index=True, return_inverse=True)
        number_of = np.empty(len(first), np.int64)
        number_of[np.argsort(first)] = np.arange(len(first))
        self._sequence_T = number_of[place]

    def _fail(self, order_R: Ints, at: Any, rule: str) -> None:
        row = int(order_R[at])
        raise self._table.error(self._records[row], row, rule)

    def _numbered(self, slot_R: Ints, cell_R: Ints) -> Ints:
        """Choices counted from 0, whatever their column counts from; a column that counts none is refused."""
        used, numbered_R = np.unique(slot_R, return_inverse=True)
        most = int(np.diff(np.append(np.flatnonzero(cell_R), len(cell_R))).max())
        if len(used) > most:
            rule = f"the choices have {len(used)} numbers, and no token has more than {most} of them in a layer"
            self._fail(self._order_R, np.argmax(slot_R), rule)
        return numbered_R.astype(np.uint16)

    def _check_layers(self, layer_R: Ints, cell_R: Ints) -> None:
        layers_T = np.add.reduceat(cell_R.astype(np.int64), self._start_T)
        lacking = np.flatnonzero(layers_T != len(self.layer_ids))
        if len(lacking):
            start = self._start_T[lacking[0]]
            end = self._start_T[lacking[0] + 1] if lacking[0] + 1 < len(self._start_T) else len(layer_R)
            missing = int(np.setdiff1d(self.layer_ids, layer_R[start:end])[0])
            rule = f"the token has no row for layer {missing}, which others have"
            more = f"; {len(lacking) - 1} more tokens lack one" if len(lacking) > 1 else ""
            self._fail(self._order_R, start, rule + more)

    def _check_agreement(self, token_R: Ints) -> None:
        """Leave out what rows of one token say differently; a phase they must agree in."""
        for name in _OF_TOKEN:
            if self._table.kept(name):
                differs_R = _changes(self._records[name][self._order_R]) & ~token_R
                if differs_R.any():
                    if name == "phase":
                        self._fail(self._order_R, np.argmax(differs_R), "rows of one token differ in phase")
                    self._table.leave_out(name)

    def pieces(self) -> Iterator[Piece]:
        """The tokens, in the order in which the table first names them."""
        layers, width = len(self.layer_ids), self._records.dtype["expert"].shape[0]
        most = max(1, _PIECE_BYTES // (8 * layers * self._slots * width))
        tokens = len(self._start_T)
        remarks = self._table.remarks()
        for begin in range(0, tokens, most):
            yield self._piece(begin, min(begin + most, tokens), remarks if begin == 0 else ())

    def _piece(self, begin: int, end: int, remarks: tuple[tuple[str, str], ...]) -> Piece:
        table, chosen = self._table, self._by_first_T[begin:end]
        start_T = self._start_T[chosen]
        end_T = np.append(self._start_T, len(self._order_R))[chosen + 1]
        count_T = end_T - start_T
        first_T = np.cumsum(count_T) - count_T
        token_R = np.repeat(np.arange(len(chosen)), count_T)
        sorted_R = np.arange(int(count_T.sum())) + np.repeat(start_T - first_T, count_T)
        row_R = self._order_R[sorted_R]
        record_R = self._records[row_R]
        layer_R = np.searchsorted(self.layer_ids, record_R["layer"])
        slot_R = self._slot_R[sorted_R]
        shape = (len(chosen), len(self.layer_ids), self._slots, record_R["expert"].shape[1])
        flat = (*shape[:2], shape[2] * shape[3])
        experts = np.full(shape, NO_CHOICE, np.uint16)
        experts[token_R, layer_R, slot_R] = record_R["expert"]
        weights_TRK = None
        if table.kept("weight"):
            weights = np.zeros(shape, np.float16)
            weights[token_R, layer_R, slot_R] = record_R["weight"]
            weights_TRK = weights.reshape(flat)
        of_token = {name: record_R[name][first_T] for name in _OF_TOKEN if table.kept(name)}
        phase_T = of_token.get("phase", np.full(len(chosen), table.phase, np.uint8))
        rows = table.source_of(int(row_R[0]))
        return Piece(
            path=rows.path,
            where=f"tokens from {rows.word} {int(record_R['number'][0])}",
            choices_TRK=experts.reshape(flat),
            weights_TRK=weights_TRK,
            sequence_T=self._sequence_T[begin:end],
            position_T=record_R["position"][first_T].astype(np.int64),
            phase_T=phase_T,
            step_T=of_token.get("step"),
            source_rank_T=of_token.get("source_rank"),
            token_id_T=of_token.get("token_id"),
            topics=table.topics if "topic" in of_token else (),
            topic_T=of_token.get("topic"),
            remarks=remarks,
            done=end / len(self._start_T),
        )


def _changes(values_R: Ints) -> npt.NDArray[np.bool_]:
    """Where a value differs from the one before; True at the first."""
    changed_R = np.ones(len(values_R), bool)
    np.not_equal(values_R[1:], values_R[:-1], out=changed_R[1:])
    return changed_R


def _whole(rows: Rows, name: str, lowest: int, highest: int) -> npt.NDArray[np.int64]:
    """A column of whole numbers, in range."""
    values = np.asarray(rows.columns[name])
    if values.dtype.kind not in "iu":
        raise rows.error(0, name, None, f"must be whole numbers, not {values.dtype}")
    bad = np.argwhere((values < lowest) | (values > highest))
    if len(bad):
        value = int(values[tuple(bad[0])])
        raise rows.error(int(bad[0][0]), name, value, f"must be from {lowest} to {highest}")
    return values.astype(np.int64)


def _phases(rows: Rows) -> npt.NDArray[np.uint8]:
    phases = []
    for row, value in enumerate(rows.columns["phase"]):
        if not isinstance(value, str) or value not in PHASES:
            raise rows.error(row, "phase", value if isinstance(value, str) else int(value), f"must be {_WORDS}")
        phases.append(PHASES.index(value))
    return np.array(phases, np.uint8)


_WORDS = ", ".join(PHASES)


def _weights(rows: Rows, experts_RW: npt.NDArray[np.uint16]) -> npt.NDArray[np.float16]:
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
