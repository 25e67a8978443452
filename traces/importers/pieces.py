"""What importers hand on: the choices of some tokens as a file gives them, and how they become a trace's.

Axes: T token, R row (a layer of the file: every hidden layer, or MoE layers only), K choice.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.meta import MAX_CHOICES, MAX_EXPERTS, MAX_LAYERS, NO_CHOICE, PHASES

Ints = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Piece:
    """Tokens that a file keeps together: a request, a forward pass, a topic.

    Parameters
    ----------
    path, where
        The file, and the part of it, for messages.
    choices_TRK
        Whole numbers of any type; -1 and 65535 are no choice.
    sequence_T, position_T
        Sequences counted from 0 in this piece, and the place in them.
    phase_T
        Index into `PHASES`.
    step_T, source_rank_T, token_id_T
        None where the file does not say.
    weights_TRK
        Finite gate weights beside the choices; None where the file does not say.
    topics, topic_T
        Names, and each token's index into them; without indices all tokens are of the first, if
        there is one.
    remarks
        What the notes should say, as (sentence, of what): equal sentences are said once, with all
        they are about.
    done
        The part of the file that is read with it, 0 to 1.
    """

    path: Path
    where: str
    choices_TRK: Ints
    sequence_T: Ints
    position_T: Ints
    phase_T: Ints
    step_T: Ints | None = None
    source_rank_T: Ints | None = None
    token_id_T: Ints | None = None
    weights_TRK: npt.NDArray[np.float16] | None = None
    topics: tuple[str, ...] = ()
    topic_T: Ints | None = None
    remarks: tuple[tuple[str, str], ...] = ()
    done: float = 1.0

    @property
    def n_sequences(self) -> int:
        """How many sequences it holds."""
        return int(self.sequence_T.max(initial=-1)) + 1


def one_phase(phase: str, tokens: int) -> npt.NDArray[np.uint8]:
    """The phase column of tokens that are all of one phase."""
    return np.full(tokens, PHASES.index(phase), np.uint8)


def clean_choices(piece: Piece, *, zeros_are_empty: bool) -> npt.NDArray[np.uint16]:
    """The piece's choices as uint16 with `NO_CHOICE`, checked: no id out of range, no expert twice.

    Parameters
    ----------
    zeros_are_empty
        The engine's buffer starts as zeros: expert 0 in all K > 1 places, which no router can
        choose, was never written and is no choice.

    Raises
    ------
    MoecastError
        Names the file, the part, and the token.
    """
    raw_TRK = piece.choices_TRK
    if raw_TRK.dtype.kind not in "iu" or raw_TRK.ndim != 3:
        rule = f"must be an array of whole numbers with 3 axes, not {raw_TRK.dtype} {list(raw_TRK.shape)}"
        raise MoecastError(rule, file=piece.path, field=piece.where)
    _, rows, choices = raw_TRK.shape
    if not (1 <= rows <= MAX_LAYERS and 1 <= choices <= MAX_CHOICES):
        raise MoecastError("must be [tokens, layers, choices]", file=piece.path, field=piece.where, value=raw_TRK.shape)
    lowest, highest = (int(raw_TRK.min()), int(raw_TRK.max())) if raw_TRK.size else (0, 0)
    if lowest < -1:
        raise MoecastError("an expert id below -1", file=piece.path, field=piece.where, value=lowest)
    if highest > MAX_EXPERTS:
        raise MoecastError(f"an expert id above {MAX_EXPERTS - 1}", file=piece.path, field=piece.where, value=highest)
    # -1 becomes 65535 when its bits are cut to 16.
    experts_TRK = np.ascontiguousarray(raw_TRK.astype(np.uint16))
    if zeros_are_empty and choices > 1:
        experts_TRK[(raw_TRK == 0).all(axis=2)] = NO_CHOICE
    _check_repeats(piece, experts_TRK)
    return experts_TRK


def checked_column(piece: Piece, name: str, tokens: int) -> npt.NDArray[np.int64]:
    """A column of the piece as int64, known to fit the trace's element type.

    Raises
    ------
    MoecastError
        Another length, or a number out of range.
    """
    lowest, highest = COLUMN_RANGES[name]
    column = getattr(piece, name)
    label = name.removesuffix("_T")
    if column.shape != (tokens,):
        rule = f"{len(column)} {label} numbers for {tokens} tokens"
        raise MoecastError(rule, file=piece.path, field=piece.where)
    if tokens and not lowest <= int(column.min()) <= int(column.max()) <= highest:
        raise MoecastError(f"a {label} outside {lowest}…{highest}", file=piece.path, field=piece.where)
    return np.asarray(column, np.int64)


COLUMN_RANGES = {
    "sequence_T": (0, 2**32 - 1),
    "position_T": (0, 2**32 - 1),
    "phase_T": (0, len(PHASES) - 1),
    "step_T": (0, 2**32 - 1),
    "source_rank_T": (0, 2**16 - 1),
    "token_id_T": (-(2**31), 2**31 - 1),
}


def _check_repeats(piece: Piece, experts_TRK: npt.NDArray[np.uint16]) -> None:
    from moecast.traces.checks import check_choices  # compiles: not needed to import this module

    try:
        check_choices(experts_TRK, MAX_EXPERTS)
    except ValueError as error:
        raise MoecastError(str(error), file=piece.path, field=piece.where) from error
