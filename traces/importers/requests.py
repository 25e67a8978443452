"""Requests that an engine returned with their routing: where each row stands in its sequence, and of which phase it is.

The token at position p < P (the prompt's length) was read in prefill; the g-th generated token was
read in decode, at position P + g, by the pass that made the next one. The last generated token is
read by no pass and has no row. Axes: T token, R row, K choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.importers.json_records import Record
from moecast.traces.importers.options import ImportOptions
from moecast.traces.importers.pieces import Ints, Piece
from moecast.traces.meta import PHASES

_PREFILL, _DECODE = PHASES.index("prefill"), PHASES.index("decode")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One answer to a prompt.

    Parameters
    ----------
    choices_TRK
        Its routing: of the generated tokens, or of the prompt's too.
    token_ids
        The generated tokens.
    tokens
        How many were generated, where the ids are not there.
    """

    choices_TRK: Ints | None
    token_ids: Ints | None = None
    tokens: int | None = None

    @property
    def generated(self) -> int | None:
        """How many tokens were generated; None where not known."""
        return self.tokens if self.token_ids is None else len(self.token_ids)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Request:
    """A prompt and its completions.

    Parameters
    ----------
    prompt_TRK
        The prompt's routing, where it is apart.
    prompt_ids, prompt_tokens
        Its tokens, or how many they are.
    split
        Completions hold the routing of generated tokens only.
    """

    path: Path
    where: str
    completions: tuple[Completion, ...]
    prompt_TRK: Ints | None = None
    prompt_ids: Ints | None = None
    prompt_tokens: int | None = None
    split: bool = False
    remarks: tuple[tuple[str, str], ...] = ()
    done: float = 1.0

    @property
    def prompt(self) -> int | None:
        """P; None where not known."""
        if self.split and self.prompt_TRK is not None:
            return len(self.prompt_TRK)
        return self.prompt_tokens if self.prompt_ids is None else len(self.prompt_ids)


@dataclasses.dataclass(slots=True, eq=False)
class _Rows:
    """Some rows of a sequence."""

    choices_TRK: Ints
    position_T: npt.NDArray[np.int64]
    sequence: int
    phase_T: npt.NDArray[np.uint8]
    ids: Ints | None


def answered(records: Iterable[Record]) -> Iterator[Record]:
    """Leave out errors and aborted requests, which a server writes in an answer's place; a record beside notes them."""
    held: Record | None = None
    remarks: list[tuple[str, str]] = []
    for record in records:
        if _failed(record.value):
            remarks.append(("Left out, since they are errors and no answers", record.where))
            continue
        if held is not None:
            yield held._replace(remarks=tuple(remarks))
            remarks.clear()
        held = record
    if held is not None:
        yield held._replace(remarks=tuple(remarks))


def _failed(value: dict[str, Any]) -> bool:
    """An error of the OpenAI form, or of ``/generate``."""
    if any(name in value for name in ("choices", "outputs", "routed_experts")):
        return False
    info = value.get("meta_info")
    reason = info.get("finish_reason") if type(info) is dict and "routed_experts" not in info else None
    aborted = type(reason) is dict and reason.get("type") == "abort"
    return aborted or bool(value.get("error")) or value.get("object") == "error"


def request_piece(request: Request, options: ImportOptions) -> Piece:
    """The request's tokens: a sequence for each completion, the prompt in the first one only, since it ran once.

    Raises
    ------
    MoecastError
        No routing at all, or rows that do not fit the tokens.
    """
    remarks = list(request.remarks)
    parts: list[_Rows] = []
    if request.prompt_TRK is not None:
        count = len(request.prompt_TRK)
        ids = request.prompt_ids if request.prompt_ids is not None and len(request.prompt_ids) == count else None
        parts.append(_Rows(request.prompt_TRK, np.arange(count), 0, np.full(count, _PREFILL, np.uint8), ids))
    for number, completion in enumerate(request.completions):
        if completion.choices_TRK is None:
            continue
        if completion.choices_TRK.ndim != 3:
            rule = "must be [tokens, layers, choices]"
            raise MoecastError(rule, file=request.path, field=request.where)
        rows = _generated(request, completion) if request.split else _whole(request, completion, options, remarks)
        rows.sequence = number
        kept_T = np.ones(len(rows.position_T), bool)
        if number and not request.split and request.prompt is not None:
            kept_T = rows.position_T >= request.prompt
        parts.append(_picked(rows, kept_T))
    if not parts:
        raise MoecastError("holds no routed_experts", file=request.path, field=request.where)
    return _piece(request, parts, tuple(remarks))


def _generated(request: Request, completion: Completion) -> _Rows:
    """Rows of generated tokens only."""
    assert completion.choices_TRK is not None
    count, begin = len(completion.choices_TRK), request.prompt or 0
    if completion.generated is not None and count > completion.generated:
        rule = f"{count} rows of routing for {completion.generated} generated tokens"
        raise MoecastError(rule, file=request.path, field=request.where)
    ids = None if completion.token_ids is None else completion.token_ids[:count]
    return _Rows(completion.choices_TRK, begin + np.arange(count), 0, np.full(count, _DECODE, np.uint8), ids)


def _whole(request: Request, completion: Completion, options: ImportOptions, remarks: list[tuple[str, str]]) -> _Rows:
    """Rows of prompt and generated tokens but the last, perhaps without the first ones."""
    assert completion.choices_TRK is not None
    count, prompt, generated = len(completion.choices_TRK), request.prompt, completion.generated
    if prompt is None:
        phase = options.phase or "prefill"
        remarks.append((f"Without the prompts' lengths all tokens are taken as {phase}", ""))
        phase_T = np.full(count, PHASES.index(phase), np.uint8)
        return _Rows(completion.choices_TRK, np.arange(count), 0, phase_T, None)
    begin = 0 if generated is None else prompt + max(generated - 1, 0) - count
    if begin < 0:
        rule = f"{count} rows of routing for {prompt} prompt and {generated} generated tokens, the last without a row"
        raise MoecastError(rule, file=request.path, field=request.where)
    position_T = begin + np.arange(count)
    phase_T = np.where(position_T < prompt, _PREFILL, _DECODE).astype(np.uint8)
    ids = None
    if request.prompt_ids is not None and completion.token_ids is not None:
        ids = np.concatenate([request.prompt_ids, completion.token_ids])[begin : begin + count]
    return _Rows(completion.choices_TRK, position_T, 0, phase_T, ids)


def _picked(rows: _Rows, kept_T: npt.NDArray[np.bool_]) -> _Rows:
    ids = None if rows.ids is None else rows.ids[kept_T]
    return _Rows(rows.choices_TRK[kept_T], rows.position_T[kept_T], rows.sequence, rows.phase_T[kept_T], ids)


def _piece(request: Request, parts: list[_Rows], remarks: tuple[tuple[str, str], ...]) -> Piece:
    shapes = {part.choices_TRK.shape[1:] for part in parts}
    if len(shapes) != 1:
        rule = f"prompt and completions differ in layers and choices: {sorted(shapes)}"
        raise MoecastError(rule, file=request.path, field=request.where)
    ids: list[Any] = [part.ids for part in parts]
    known = all(part is not None and len(part) == len(rows.position_T) for part, rows in zip(ids, parts, strict=True))
    return Piece(
        path=request.path,
        where=request.where,
        choices_TRK=np.concatenate([part.choices_TRK for part in parts]),
        sequence_T=np.concatenate([np.full(len(part.position_T), part.sequence) for part in parts]),
        position_T=np.concatenate([part.position_T for part in parts]),
        phase_T=np.concatenate([part.phase_T for part in parts]),
        token_id_T=np.concatenate(ids) if known else None,
        remarks=remarks,
        done=request.done,
    )
