"""Flat tables of routing, a row for a token at a layer or for one of its choices: rows in any order become tokens.

Rows are checked and kept on disk as they come, so that a table may be larger than memory; only the
keys that sort them are held, about 64 bytes a row, and refused beforehand where that is more than
may be taken. Tokens stand in the order in which the table first names them. Axes: R row, T token, L
layer, K choice, W width (choices in a row).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.traces.importers.assemble import Layout, assemble
from moecast.traces.importers.event_rows import Rows
from moecast.traces.importers.event_table import OF_TOKEN, EventTable
from moecast.traces.importers.importer import ImportedTrace
from moecast.traces.importers.options import ImportOptions
from moecast.traces.importers.pieces import Ints, Piece
from moecast.traces.importers.provenance import Reading
from moecast.traces.meta import MAX_CHOICES, MAX_LAYERS, NO_CHOICE

_PIECE_BYTES = 16 << 20
# places for choices, a row of one: more would write a file of empty places
_MAX_PADDING, _FREE_PADDING = 32, 1 << 26


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
        A value out of range, two rows for one choice, a token without a row for some layer, or too
        many rows.
    """
    reading = Reading(paths, options.progress, passes=3)
    # its mapping outlives it; a full disk shows when it is written
    with tempfile.TemporaryFile(buffering=0) as file:
        table = EventTable(options, phase, file)
        for some in rows:
            table.add(some)
            reading.advance(some.path, some.done)
        tokens = _Tokens(table, table.records(paths))
    reading.next_pass()
    return assemble(
        paths, tokens.pieces, layout, options, experts=experts, layer_ids=tuple(tokens.layer_ids.tolist()), passes=3
    )


class _Tokens:
    """The table's rows in order of token, layer and choice."""

    def __init__(self, table: EventTable, records: npt.NDArray[Any]) -> None:
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
        for name in OF_TOKEN:
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
        of_token = {name: record_R[name][first_T] for name in OF_TOKEN if table.kept(name)}
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
