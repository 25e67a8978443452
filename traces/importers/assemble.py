"""From pieces to a trace: one reading that checks everything and finds the sizes, one that copies.

Nothing is written before the first reading has ended, so that bad input leaves nothing behind; no
more than a piece is held at a time. Axes: T token, R row of the file, L MoE layer, K choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.importers.importer import ImportedTrace
from moecast.traces.importers.layers import find_layers
from moecast.traces.importers.options import ImportOptions
from moecast.traces.importers.pieces import Piece, checked_column, clean_choices
from moecast.traces.importers.provenance import Reading, joined_notes, source_of
from moecast.traces.meta import NO_CHOICE, TraceMeta
from moecast.traces.trace import RoutingTrace

_OPTIONAL = {"step_T": np.uint32, "source_rank_T": np.uint16, "token_id_T": np.int32}
_WEIGHTS = "weights_TRK"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What the rows and numbers of an engine's files mean.

    Parameters
    ----------
    importer, engine
        Names, for the metadata.
    rows
        ``hidden``: one for every hidden layer, ``moe``: MoE layers only, ``either``: it depends on
        the version, ``some``: some MoE layers, whose ids the file says.
    zeros_are_empty
        See `clean_choices`.
    keep_empty_tokens
        Keep tokens without any choice; otherwise they are padding, or were not run, and are left
        out and counted.
    trim_choices
        The file has room for more choices than the model makes.
    numbered_sequences
        Pieces number sequences through all of them, instead of each from 0.
    """

    importer: str
    engine: str
    rows: Literal["hidden", "moe", "either", "some"]
    zeros_are_empty: bool = False
    keep_empty_tokens: bool = False
    trim_choices: bool = False
    numbered_sequences: bool = False


def assemble(
    paths: Sequence[Path],
    pieces: Callable[[], Iterator[Piece]],
    layout: Layout,
    options: ImportOptions,
    *,
    experts: int | None = None,
    layer_ids: tuple[int, ...] | None = None,
    passes: int = 2,
) -> ImportedTrace:
    """Check all pieces, and give the trace they make.

    Parameters
    ----------
    pieces
        Yields all pieces of all files in order, each time it is called.
    experts, layer_ids
        E and the rows' layers, where the files say them.
    passes
        How often everything is read in all; the two here are the last.

    Raises
    ------
    MoecastError
        Pieces that are wrong or do not fit each other or the model.
    """
    reading = Reading(paths, options.progress, passes=passes, begin=passes - 2)
    survey = _Survey(layout)
    for piece in pieces():
        survey.add(piece)
        reading.advance(piece.path, piece.done)
    meta, rows = survey.finish(paths, options, experts, layer_ids)
    reading.next_pass()

    def read() -> Iterator[RoutingTrace]:
        again = Reading(paths, options.progress, passes=passes, begin=passes - 1)
        first_sequence = 0
        for piece in pieces():
            batch = _batch(piece, layout, meta, rows, survey.columns, first_sequence)
            first_sequence += 0 if layout.numbered_sequences else piece.n_sequences
            if batch.n_tokens or layout.keep_empty_tokens:
                yield batch
            again.advance(piece.path, piece.done)
        again.next_pass()

    return ImportedTrace(meta=meta, tokens=survey.tokens, read=read, warnings=tuple(survey.warnings))


class _Survey:
    """What all pieces together say: sizes, which rows and columns are used, and what to note."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._shape_RK: tuple[int, int] | None = None
        self._used_RK, self._not_zero_R = np.zeros((0, 0), bool), np.zeros(0, bool)
        self._highest = self._empty = self._sequences = 0
        self._remarks: dict[str, dict[str, None]] = {}
        self._seen: set[str] = set()
        self._missing: set[str] = set()
        self.tokens = 0
        self.warnings: list[str] = []

    @property
    def columns(self) -> tuple[str, ...]:
        """The optional columns that every piece has."""
        return tuple(name for name in (*_OPTIONAL, _WEIGHTS) if name in self._seen - self._missing)

    def add(self, piece: Piece) -> None:
        """Check a piece and count it."""
        experts_TRK = clean_choices(piece, zeros_are_empty=self._layout.zeros_are_empty)
        tokens, shape_RK = len(experts_TRK), (experts_TRK.shape[1], experts_TRK.shape[2])
        if self._shape_RK is None:
            self._shape_RK, self._used_RK = shape_RK, np.zeros(shape_RK, bool)
            self._not_zero_R = np.zeros(shape_RK[0], bool)
        if shape_RK != self._shape_RK:
            rule = f"tokens differ in layers and choices: {list(shape_RK)} here, {list(self._shape_RK)} before"
            raise MoecastError(rule, file=piece.path, field=piece.where)
        for name in ("sequence_T", "position_T", "phase_T", *_OPTIONAL, _WEIGHTS):
            if getattr(piece, name) is None:
                self._missing.add(name)
            else:
                self._seen.add(name)
                if name != _WEIGHTS:
                    checked_column(piece, name, tokens)
        chosen_TRK = experts_TRK != NO_CHOICE
        self._used_RK |= chosen_TRK.any(axis=0)
        self._not_zero_R |= (chosen_TRK & (experts_TRK != 0)).any(axis=(0, 2))
        self._highest = max(self._highest, int(experts_TRK.max(where=chosen_TRK, initial=0)))
        empty = 0 if self._layout.keep_empty_tokens else int((~chosen_TRK.any(axis=(1, 2))).sum())
        self._empty += empty
        self.tokens += tokens - empty
        before = 0 if self._layout.numbered_sequences else self._sequences
        self._sequences = max(self._sequences, before + piece.n_sequences)
        for sentence, about in piece.remarks:
            self._remarks.setdefault(sentence, {}).setdefault(about)

    def finish(
        self,
        paths: Sequence[Path],
        options: ImportOptions,
        experts: int | None,
        layer_ids: tuple[int, ...] | None,
    ) -> tuple[TraceMeta, npt.NDArray[np.intp]]:
        """The metadata, and the rows that are MoE layers."""
        if self._shape_RK is None or (not self.tokens and not self._layout.keep_empty_tokens):
            raise MoecastError("holds no routing: no token makes a choice", file=paths[0])
        if self._sequences > 2**32:
            raise MoecastError("more than 2^32 sequences", file=paths[0])
        found = find_layers(self._used_R(options), self._layout.rows, options, layer_ids, file=paths[0])
        choices = self._choices(options)
        size, notes = self._experts(paths, options, experts, choices)
        if found.note:
            notes.append(found.note)
        if found.missing:
            notes.append(found.missing)
            self.warnings.append(found.missing)
        if self._layout.zeros_are_empty and choices == 1 and options.layer_ids is None:
            doubtful = ", ".join(str(row) for row in np.flatnonzero(self._used_RK[:, 0] & ~self._not_zero_R))
            if doubtful:
                notes.append(
                    f"All tokens choose expert 0 in rows {doubtful}: dense layers, or not; a config would say."
                )
        if self._empty:
            notes.append(f"{self._empty:,} tokens without any choice (padding, or not run) are left out.")
        if partly := sorted(name.rpartition("_")[0] for name in self._seen & self._missing):
            notes.append(f"Left out, since only some tokens have it: {', '.join(partly)}.")
        source = source_of(paths, self._layout.importer, self._layout.engine, options)
        if found.dropped:
            source["dense_layers_dropped"] = list(found.dropped)
        try:
            meta = TraceMeta(
                model=options.model or paths[0].stem,
                layers=len(found.rows),
                experts=size,
                choices=choices,
                config=options.config,
                layer_ids=found.layer_ids,
                source=source,
                notes=joined_notes(options.notes, notes, self._remarks),
            )
        except ValueError as error:
            raise MoecastError(str(error), file=paths[0]) from error
        return meta, np.array(found.rows, np.intp)

    def _used_R(self, options: ImportOptions) -> npt.NDArray[np.bool_]:
        """Rows with any choice; with K = 1 zeros may be a dense layer's or expert 0's, and the config decides."""
        if self._layout.zeros_are_empty and self._used_RK.shape[1] == 1 and options.layer_ids is not None:
            return self._not_zero_R
        return np.asarray(self._used_RK.any(axis=1))

    def _choices(self, options: ImportOptions) -> int:
        """K: as the file has it, or the last one ever used where the file has room for more."""
        room = self._used_RK.shape[1]
        if not self._layout.trim_choices:
            return room
        used = int(np.flatnonzero(self._used_RK.any(axis=0)).max(initial=0)) + 1
        return min(room, max(used, options.choices or 1))

    def _experts(
        self, paths: Sequence[Path], options: ImportOptions, told: int | None, choices: int
    ) -> tuple[int, list[str]]:
        """E, and what to note of where it is from."""
        if told and options.experts and told != options.experts:
            rule = f"the model has {options.experts} experts"
            raise MoecastError(rule, file=paths[0], value=told)
        size = told or options.experts
        if size is not None:
            if self._highest >= size:
                rule = f"outside 0…{size - 1}"
                raise MoecastError(rule, file=paths[0], field="expert", value=self._highest)
            return size, []
        size = max(self._highest + 1, choices)
        where = f"{paths[0].name}, which does" if len(paths) == 1 else "the files, which do"
        guess = f"E = {size} is taken from the highest expert id in {where} not say it."
        self.warnings.append(f"{guess} If the model has more experts, say --experts, --config or --model.")
        return size, [guess]


def _batch(
    piece: Piece,
    layout: Layout,
    meta: TraceMeta,
    rows: npt.NDArray[np.intp],
    columns: Sequence[str],
    first_sequence: int,
) -> RoutingTrace:
    """The piece as a trace of the imported sizes."""
    clean_TRK = clean_choices(piece, zeros_are_empty=layout.zeros_are_empty)
    tokens = len(clean_TRK)
    kept_T = np.ones(tokens, bool)
    if not layout.keep_empty_tokens:
        kept_T = (clean_TRK != NO_CHOICE).any(axis=(1, 2))
    experts_TLK = clean_TRK[kept_T][:, rows, : meta.choices]
    optional: dict[str, Any] = {
        name: checked_column(piece, name, tokens)[kept_T].astype(dtype)
        for name, dtype in _OPTIONAL.items()
        if name in columns
    }
    if _WEIGHTS in columns and piece.weights_TRK is not None:
        optional["weights_TLK"] = np.ascontiguousarray(piece.weights_TRK[kept_T][:, rows, : meta.choices])
    return RoutingTrace(
        meta=meta,
        experts_TLK=np.ascontiguousarray(experts_TLK),
        sequence_T=(checked_column(piece, "sequence_T", tokens)[kept_T] + first_sequence).astype(np.uint32),
        position_T=checked_column(piece, "position_T", tokens)[kept_T].astype(np.uint32),
        phase_T=checked_column(piece, "phase_T", tokens)[kept_T].astype(np.uint8),
        topics=piece.topics,
        topic_T=(np.full(tokens, 0 if piece.topics else -1) if piece.topic_T is None else piece.topic_T)[kept_T].astype(
            np.int16
        ),
        **optional,
    )
