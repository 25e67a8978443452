"""Taking a sample of whole sequences from a trace of any length, in one pass and bounded memory.

Axes: T token, S sequence, or piece of a long one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from moecast.traces.hashing import ContentHasher
from moecast.traces.meta import PHASES
from moecast.traces.trace import RoutingTrace, concatenate

MOST_DONORS = 1 << 17
"""Donor tokens of a model: more cost memory and time to fit, and add little."""

# Longer sequences count as several, so that a sample of few long ones still is a sample.
_LONGEST = 1 << 13

_MIX = np.uint64(0x9E3779B97F4A7C15)
_ALL = np.uint64(2**64 - 1)


class SequenceSample:
    """About `most` tokens of a trace: whole sequences, those whose number has the smallest hash.

    A sequence of more than 8,192 positions counts as several.

    Parameters
    ----------
    most
        Tokens to keep at the end, and half as many again on the way.
    phase
        Only tokens of this phase.
    """

    def __init__(self, *, most: int = MOST_DONORS, phase: str | None = None) -> None:
        self._most, self._phase = most, phase
        self._kept: list[RoutingTrace] = []
        self._tokens, self._limit = 0, _ALL
        self._hasher: ContentHasher | None = None
        self.seen_tokens = 0

    def add(self, batch: RoutingTrace) -> None:
        """Take the trace's next tokens."""
        self._hasher = self._hasher or ContentHasher(batch.meta)
        self._hasher.add(batch.columns(), batch.topics)
        self.seen_tokens += batch.n_tokens
        keep_T = _mixed(pieces_T(batch)) <= self._limit
        if self._phase is not None:
            keep_T &= batch.phase_T == PHASES.index(self._phase)
        rows = np.flatnonzero(keep_T)
        if len(rows):
            self._kept.append(batch.select(rows))
            self._tokens += len(rows)
        if self._tokens > self._most + self._most // 2:
            self._shrink()

    @property
    def content_hash(self) -> str:
        """Hash of all tokens seen, `RoutingTrace.content_hash` of the whole trace."""
        return self._hasher.hexdigest() if self._hasher else ""

    def trace(self) -> RoutingTrace | None:
        """The sample, in the order of the trace; None without a token."""
        if self._tokens > self._most:
            self._shrink()
        return concatenate(self._kept) if self._kept else None

    def _shrink(self) -> None:
        """Lower the limit until at most `most` tokens are left, one sequence at the least."""
        whole = concatenate(self._kept)
        mixed_T = _mixed(pieces_T(whole))
        hash_S, length_S = np.unique(mixed_T, return_counts=True)
        last = max(int(np.searchsorted(np.cumsum(length_S), self._most, side="right")) - 1, 0)
        self._limit = hash_S[last]
        self._kept = [whole.select(np.flatnonzero(mixed_T <= self._limit))]
        self._tokens = self._kept[0].n_tokens


def sample_trace(batches: Iterable[RoutingTrace], *, phase: str | None = None) -> SequenceSample:
    """Sample a trace that comes in batches."""
    sample = SequenceSample(phase=phase)
    for batch in batches:
        sample.add(batch)
    return sample


def pieces_T(trace: RoutingTrace) -> npt.NDArray[np.uint64]:
    """Number of each token's sequence, or of its piece of a long one."""
    return (trace.sequence_T.astype(np.uint64) << np.uint64(32)) | (trace.position_T // np.uint32(_LONGEST))


def _mixed(piece_T: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    mixed_T = (piece_T + np.uint64(1)) * _MIX
    return (mixed_T ^ (mixed_T >> np.uint64(29))) * _MIX
