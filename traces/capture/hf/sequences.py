"""Which sequence each row of a batch is, and where in it each token stands, from prefill through decode.

A cache is the thread: rows of a forward pass that continues a cache are the sequences that filled
it, any other pass starts new ones. Axes: B row of the batch, Q query position, T token.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moecast.errors import MoecastError
from moecast.traces import PHASES
from moecast.traces.capture.hf.batch import Batch, Bools, Ints


@dataclass(kw_only=True, slots=True)
class Rows:
    """The sequences of one batch: ids, topics and tokens so far of each row, and how long the cache is."""

    sequence_B: Ints
    topic_B: Ints
    tokens_B: Ints
    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """The tokens of one forward pass that are to be recorded: their places in the batch, and what is known of them."""

    kept_BQ: Bools
    sequence_T: Ints
    position_T: Ints
    topic_T: Ints
    token_id_T: Ints | None
    phase: int


@dataclass(kw_only=True)
class SequenceBook:
    """Follows sequences across forward passes.

    In decode, tokens with one of the `end_ids` are not recorded: `generate` feeds them to rows that
    have ended, until the whole batch has.
    """

    end_ids: Collection[int] = ()
    _of_cache: weakref.WeakKeyDictionary[Any, Rows] = field(default_factory=weakref.WeakKeyDictionary)
    _next: int = 0

    def place(self, batch: Batch, *, topics: Sequence[int], training: bool) -> tuple[Placed, Rows]:
        """Say what each token of a forward pass is. Nothing changes until `keep` is told that the pass succeeded.

        Raises
        ------
        MoecastError
            The cache is not as the last pass left it.
        """
        known = self._of_cache.get(batch.cache) if batch.cache is not None and batch.past else None
        if known is not None:
            self._check(batch, known)
        real_BQ, ids_BQ = batch.real_BQ(), batch.ids_BQ()
        rows = known or self._start(batch, topics)
        decoding = bool(batch.past) and batch.queries == 1
        kept_BQ = real_BQ
        if decoding and not training and ids_BQ is not None and self.end_ids:
            kept_BQ = real_BQ & ~np.isin(ids_BQ, list(self.end_ids))
        sequence_BQ = np.broadcast_to(rows.sequence_B[:, None], kept_BQ.shape)
        position_BQ = rows.tokens_B[:, None] + real_BQ.cumsum(1) - 1
        if (starts_BQ := batch.starts_BQ()) is not None:
            sequence_BQ, position_BQ = _unpacked(starts_BQ, self._next)
        topic_BQ = np.broadcast_to(rows.topic_B[:, None], kept_BQ.shape)
        placed = Placed(
            kept_BQ=kept_BQ,
            sequence_T=sequence_BQ[kept_BQ],
            position_T=position_BQ[kept_BQ],
            topic_T=topic_BQ[kept_BQ],
            token_id_T=None if ids_BQ is None else ids_BQ[kept_BQ],
            phase=PHASES.index("train" if training else "decode" if decoding else "prefill"),
        )
        after = Rows(
            sequence_B=rows.sequence_B,
            topic_B=rows.topic_B,
            tokens_B=rows.tokens_B + real_BQ.sum(1),
            length=batch.past + batch.queries,
        )
        return placed, after

    def keep(self, placed: Placed, after: Rows, cache: Any) -> None:
        """Remember the rows of a pass that succeeded, under the cache it filled."""
        newest = max(int(after.sequence_B.max()), int(placed.sequence_T.max(initial=-1)))
        self._next = max(self._next, newest + 1)
        if cache is not None:
            self._of_cache[cache] = after
            cache.reorder_cache = _refuse_beams

    def forget(self) -> None:
        """Leave the caches as they were."""
        for cache in list(self._of_cache):
            vars(cache).pop("reorder_cache", None)
        self._of_cache.clear()

    def _start(self, batch: Batch, topics: Sequence[int]) -> Rows:
        return Rows(
            sequence_B=self._next + np.arange(batch.rows),
            topic_B=_per_row(topics, batch.rows),
            tokens_B=batch.past_tokens_B() if batch.past else np.zeros(batch.rows, np.int64),
            length=0,
        )

    @staticmethod
    def _check(batch: Batch, known: Rows) -> None:
        if batch.past != known.length:
            rule = (
                f"the cache held {known.length} positions after the last pass and was cut; assisted decoding "
                "(tokens that are run and taken back) is not captured"
            )
            raise MoecastError(rule, field="past_key_values", value=batch.past)
        if batch.rows != len(known.sequence_B):
            rule = f"the cache was filled by {len(known.sequence_B)} rows; rows that come or go cannot be followed"
            raise MoecastError(rule, field="batch rows", value=batch.rows)


def _per_row(topics: Sequence[int], rows: int) -> Ints:
    """Topics of the rows: one for all, one each, or one for every `num_return_sequences` rows."""
    if rows % len(topics):
        raise ValueError(f"topic: {len(topics)} names for {rows} rows")
    return np.repeat(np.asarray(topics, np.int64), rows // len(topics))


def _unpacked(starts_BQ: Bools, first: int) -> tuple[Ints, Ints]:
    """Sequence and position of tokens in rows that hold several sequences."""
    sequence_BQ = first + starts_BQ.ravel().cumsum().reshape(starts_BQ.shape) - 1
    index_BQ = np.broadcast_to(np.arange(starts_BQ.shape[1]), starts_BQ.shape)
    start_BQ = np.maximum.accumulate(np.where(starts_BQ, index_BQ, 0), axis=1)
    return sequence_BQ, index_BQ - start_BQ


def _refuse_beams(*_args: object, **_kwargs: object) -> None:
    rule = "beam search moves sequences between rows, which is not captured; use num_beams=1"
    raise MoecastError(rule, field="past_key_values")
