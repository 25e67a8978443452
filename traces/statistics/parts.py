"""Counting load by window of tokens, by topic and by position, batch by batch in bounded memory.

Axes: T token, L MoE layer, E expert, K choice, W window, C topic, P bucket of positions.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from moecast.traces.meta import TraceMeta
from moecast.traces.statistics._parts import count_parts
from moecast.traces.statistics.summary import Counts, Fractions
from moecast.traces.trace import RoutingTrace

MOST_WINDOWS = 32
MOST_TOPICS = 64
LEAST_WINDOW_TOKENS = 256
_MOST_BYTES = 256 << 20
_BLOCK_TOKENS = 1 << 16
_BUCKETS = 33  # position 0, 1, 2–3, 4–7, … 2³¹ and up


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Parts:
    """Load by window and by topic.

    Parameters
    ----------
    window_tokens
        Tokens of each window but the last, which may have fewer: the smallest 256 · 2ⁿ that needs
        at most 32 windows.
    tokens_W, load_WLE
        Tokens and load of each window, in the trace's order.
    topics, tokens_C, load_CLE
        The same by topic; the first 64 topics of the trace. Tokens without topic are in none.
    topics_left_out
        Topics beyond those.
    """

    window_tokens: int
    tokens_W: Counts
    load_WLE: Counts
    topics: tuple[str, ...]
    tokens_C: Counts
    load_CLE: Counts
    topics_left_out: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Positions:
    """Empty choices by place in the sequence: capacity that fills up drops late tokens (OpenMoE, arXiv 2402.01739).

    Parameters
    ----------
    first_P, last_P
        The positions of each bucket: 0, 1, 2–3, 4–7, …
    tokens_P
        Tokens there.
    empty_PL
        Part of their K choices that is empty, by layer; nan where there are no tokens.
    """

    first_P: npt.NDArray[np.int64]
    last_P: npt.NDArray[np.int64]
    tokens_P: Counts
    empty_PL: Fractions

    @property
    def empty_P(self) -> Fractions:
        """Mean of `empty_PL` over the layers with any choice; over all where there is none."""
        used_L = (self.empty_PL < 1).any(axis=0)
        return np.asarray(self.empty_PL[:, used_L if used_L.any() else ~used_L].mean(axis=1))


class PartCounter:
    """Counts batch after batch; the result does not depend on how the tokens are cut into batches."""

    def __init__(self, meta: TraceMeta) -> None:
        layers, experts, _ = meta.shape_LEK
        self.meta = meta
        most = _MOST_BYTES // (8 * layers * experts)
        self._most_windows = max(min(MOST_WINDOWS, most // 2), 1)
        self._most_topics = max(min(MOST_TOPICS, most), 1)
        self._width, self._tokens = LEAST_WINDOW_TOKENS, 0
        self._load_WLE = np.zeros((0, layers, experts), np.int64)
        self._topics: dict[str, int] = {}
        self._tokens_C = np.zeros(0, np.int64)
        self._load_CLE = np.zeros((0, layers, experts), np.int64)
        self._tokens_P = np.zeros(_BUCKETS, np.int64)
        self._made_PL = np.zeros((_BUCKETS, layers), np.int64)

    def add(self, trace: RoutingTrace) -> None:
        """Count the tokens of a batch.

        Raises
        ------
        ValueError
            The batch's L, E or K is not the counter's.
        """
        trace.check_shape(self.meta)
        self._widen(self._tokens + trace.n_tokens)
        topic_T = self._renumbered(trace)
        for start in range(0, trace.n_tokens, _BLOCK_TOKENS):
            block = slice(start, start + _BLOCK_TOKENS)
            self._add_block(trace.experts_TLK[block], topic_T[block], trace.position_T[block])

    def parts(self) -> Parts:
        """Return the load by window and by topic so far."""
        windows = len(self._load_WLE)
        tokens_W = np.full(windows, self._width, np.int64)
        if windows:
            tokens_W[-1] = self._tokens - (windows - 1) * self._width
        counted = len(self._load_CLE)
        return Parts(
            window_tokens=self._width,
            tokens_W=tokens_W,
            load_WLE=self._load_WLE.copy(),
            topics=tuple(self._topics)[:counted],
            tokens_C=self._tokens_C.copy(),
            load_CLE=self._load_CLE.copy(),
            topics_left_out=len(self._topics) - counted,
        )

    def positions(self) -> Positions:
        """Return the empty choices by position so far; buckets beyond the last token are left out."""
        filled = int(np.flatnonzero(self._tokens_P).max(initial=-1)) + 1
        bucket_P = np.arange(filled)
        tokens_P = self._tokens_P[:filled].copy()
        empty_PL = np.full((filled, self.meta.layers), math.nan)
        slots_P = (tokens_P * self.meta.choices)[:, None]
        np.divide(self._made_PL[:filled], slots_P, out=empty_PL, where=slots_P > 0)
        return Positions(
            first_P=np.where(bucket_P > 0, 2 ** np.maximum(bucket_P - 1, 0), 0),
            last_P=2**bucket_P - 1,
            tokens_P=tokens_P,
            empty_PL=1 - empty_PL,
        )

    def _widen(self, tokens: int) -> None:
        """Join windows two by two until all tokens fit into the most windows there may be."""
        while -(-tokens // self._width) > self._most_windows:
            odd = len(self._load_WLE) % 2
            padded_WLE = np.concatenate([self._load_WLE, np.zeros((odd, *self._load_WLE.shape[1:]), np.int64)])
            self._load_WLE = padded_WLE[::2] + padded_WLE[1::2]
            self._width *= 2
        missing = -(-tokens // self._width) - len(self._load_WLE)
        if missing > 0:
            more_WLE = np.zeros((missing, *self._load_WLE.shape[1:]), np.int64)
            self._load_WLE = np.concatenate([self._load_WLE, more_WLE])

    def _renumbered(self, trace: RoutingTrace) -> npt.NDArray[np.int64]:
        """Topic of each token among those counted, else -1; numbered by first appearance, which no batch changes."""
        used, first = np.unique(trace.topic_T, return_index=True)
        for index in used[np.argsort(first)]:
            if index >= 0:
                self._topics.setdefault(trace.topics[index], len(self._topics))
        counted = min(len(self._topics), self._most_topics)
        if counted > len(self._load_CLE):
            more = counted - len(self._load_CLE)
            self._load_CLE = np.concatenate([self._load_CLE, np.zeros((more, *self._load_CLE.shape[1:]), np.int64)])
            self._tokens_C = np.concatenate([self._tokens_C, np.zeros(more, np.int64)])
        new = [self._topics.get(name, -1) for name in trace.topics]
        new_of_old = np.array([*(index if index < counted else -1 for index in new), -1], np.int64)
        topic_T = new_of_old[trace.topic_T]
        self._tokens_C += np.bincount(topic_T + 1, minlength=counted + 1)[1:]
        return topic_T

    def _add_block(
        self,
        experts_TLK: npt.NDArray[np.uint16],
        topic_T: npt.NDArray[np.int64],
        position_T: npt.NDArray[np.uint32],
    ) -> None:
        window_T = (self._tokens + np.arange(len(experts_TLK))) // self._width
        bucket_T = np.frexp(position_T.astype(np.float64))[1].astype(np.int64)  # bit length
        topics = len(self._load_CLE) + 1
        found, part_T = np.unique(window_T * topics + topic_T + 1, return_inverse=True)
        load_CLE = np.zeros((len(found), self.meta.layers, self.meta.experts + 1), np.uint32)
        count_parts(experts_TLK, part_T.astype(np.int64), bucket_T, load_CLE, self._made_PL)
        self._tokens_P += np.bincount(bucket_T, minlength=_BUCKETS)
        for part, key in enumerate(found):
            load_LE = load_CLE[part, :, : self.meta.experts]
            self._load_WLE[key // topics] += load_LE
            if key % topics:
                self._load_CLE[key % topics - 1] += load_LE
        self._tokens += len(experts_TLK)
