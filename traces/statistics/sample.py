"""Tokens of whole pieces of sequences, kept in memory for the statistics that need the order within a sequence.

Axes: T token, L MoE layer, K choice, R run (consecutive positions of one sequence).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.traces.checks import check_choices
from moecast.traces.meta import TraceMeta
from moecast.traces.trace import RoutingTrace

Source = RoutingTrace | Iterable[RoutingTrace]
Columns = dict[str, npt.NDArray[Any]]

SAMPLE_CHOICES = 1 << 24
_MOST_TOKENS = 1 << 22
_PIECE_BITS = np.uint64(12)  # positions of a piece: 2**12
_MOST_HALVINGS = 63


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenSample:
    """Tokens by sequence and position: all of a trace, or whole pieces of its sequences.

    Parameters
    ----------
    experts_TLK
        uint16, ids of E and above mean no choice.
    sequence_T, position_T
        Rising by (sequence, position); equal ones stay in the trace's order.
    token_id_T, topic_T
        None where the trace does not have them; topics are numbered by first appearance, -1 not
        known.
    run_R1
        int64 [R + 1]: where each run of consecutive positions of one sequence begins, and T.
    share
        Part of all pieces that was drawn: 1 for the whole trace, else a power of ½.
    of_tokens
        Tokens that the trace has.

    Raises
    ------
    ValueError, TypeError
        Arrays that do not fit each other or the sizes in `meta`, runs that do not rise from 0 to T,
        or a token that chooses an expert twice.
    """

    meta: TraceMeta
    experts_TLK: npt.NDArray[np.uint16]
    sequence_T: npt.NDArray[np.uint32]
    position_T: npt.NDArray[np.uint32]
    token_id_T: npt.NDArray[np.int32] | None
    topic_T: npt.NDArray[np.int16] | None
    run_R1: npt.NDArray[np.int64]
    share: float
    of_tokens: int

    def __post_init__(self) -> None:
        RoutingTrace(  # what it says of these columns holds here
            meta=self.meta,
            experts_TLK=self.experts_TLK,
            sequence_T=self.sequence_T,
            position_T=self.position_T,
            phase_T=np.zeros(len(self.experts_TLK), np.uint8),
            topic_T=np.full(len(self.experts_TLK), -1, np.int16),
            token_id_T=self.token_id_T,
        )
        check_choices(self.experts_TLK, self.meta.experts)
        run_R1 = whole_numbers("run_R1", self.run_R1, most=self.tokens)
        if not len(run_R1) or run_R1[0] != 0 or run_R1[-1] != self.tokens or (np.diff(run_R1) < 0).any():
            raise ValueError(f"run_R1: must rise from 0 to the {self.tokens} tokens")
        if self.topic_T is not None and self.topic_T.shape != (self.tokens,):
            raise ValueError(f"topic_T: shape {list(self.topic_T.shape)}, must be [{self.tokens}]")
        object.__setattr__(self, "run_R1", run_R1)

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.experts_TLK)

    @property
    def whole(self) -> bool:
        """Nothing was left out."""
        return self.tokens == self.of_tokens


class TokenSampler:
    """Draws a sample of bounded size from a trace that comes in batches.

    A piece is 4,096 consecutive positions of a sequence. A hash of sequence, piece and seed says
    which are kept; when they outgrow `most_choices`, the part that is kept is halved. What remains
    depends on neither batches nor shards.

    Parameters
    ----------
    meta
        L, E and K of every batch.
    most_choices
        T·L·K of the sample is at most this; it has at most 4 Mi tokens.
    seed
        Another seed draws other pieces.

    Raises
    ------
    ValueError
        `most_choices` is not positive.
    """

    def __init__(self, meta: TraceMeta, *, most_choices: int = SAMPLE_CHOICES, seed: int = 0) -> None:
        if most_choices < 1:
            raise ValueError(f"most_choices = {most_choices}: must be at least 1")
        self.meta = meta
        self._most_tokens = min(most_choices // (meta.layers * meta.choices), _MOST_TOKENS)
        self._shift = np.uint64((seed + 1) * 0x9E3779B97F4A7C15 & (2**64 - 1))
        self._kept: list[Columns] = []
        self._topics: dict[str, int] = {}
        self._halvings = self._tokens = self._of_tokens = 0

    def add(self, trace: RoutingTrace) -> None:
        """Take the next tokens.

        Raises
        ------
        ValueError
            The batch's L, E or K is not the sampler's, or only some batches have token ids.
        """
        trace.check_shape(self.meta)
        self._of_tokens += trace.n_tokens
        columns: Columns = {
            "experts": trace.experts_TLK,
            "sequence": trace.sequence_T,
            "position": trace.position_T,
            "topic": self._renumbered(trace),
        }
        if trace.token_id_T is not None:
            columns["token_id"] = trace.token_id_T
        if self._kept and self._kept[0].keys() != columns.keys():
            raise ValueError("only some batches have a token_id")
        self._keep(columns)
        while self._tokens > self._most_tokens and self._halvings < _MOST_HALVINGS:
            self._halvings += 1
            kept, self._kept, self._tokens = self._kept, [], 0
            for columns in kept:
                self._keep(columns)

    def sample(self) -> TokenSample:
        """Return the sample of all batches so far."""
        empty = RoutingTrace.empty(self.meta)
        blank: Columns = {
            "experts": empty.experts_TLK,
            "sequence": empty.sequence_T,
            "position": empty.position_T,
            "topic": empty.topic_T,
        }
        kept = self._kept or [blank]
        joined = {name: np.concatenate([columns[name] for columns in kept]) for name in kept[0]}
        key_T = joined["sequence"].astype(np.uint64) << np.uint64(32) | joined["position"].astype(np.uint64)
        if np.any(key_T[1:] < key_T[:-1]):
            order_T = np.argsort(key_T, kind="stable")
            key_T, joined = key_T[order_T], {name: array[order_T] for name, array in joined.items()}
        breaks = np.flatnonzero(key_T[1:] != key_T[:-1] + np.uint64(1)) + 1
        # position 2**32 - 1 followed by the next sequence's 0 would look consecutive
        breaks = np.union1d(breaks, np.flatnonzero(np.diff(joined["sequence"].astype(np.int64))) + 1)
        topic_T = joined["topic"]
        return TokenSample(
            meta=self.meta,
            experts_TLK=joined["experts"],
            sequence_T=joined["sequence"],
            position_T=joined["position"],
            token_id_T=joined.get("token_id"),
            topic_T=topic_T if np.any(topic_T >= 0) else None,
            run_R1=np.concatenate([[0], breaks, [len(key_T)]] if len(key_T) else [[0]]).astype(np.int64),
            share=0.5**self._halvings,
            of_tokens=self._of_tokens,
        )

    def _keep(self, columns: Columns) -> None:
        if self._halvings:
            drawn_T = _drawn(columns["sequence"], columns["position"], self._shift, self._halvings)
            if not drawn_T.any():
                return
            columns = {name: array[drawn_T] for name, array in columns.items()}
        if len(columns["experts"]):
            self._kept.append(columns)
            self._tokens += len(columns["experts"])

    def _renumbered(self, trace: RoutingTrace) -> npt.NDArray[np.int16]:
        new = [self._topics.setdefault(name, len(self._topics)) for name in trace.topics]
        return np.array([*new, -1], np.int16)[trace.topic_T]


def sample_of(source: Source, *, most_choices: int = SAMPLE_CHOICES, seed: int = 0) -> TokenSample:
    """Draw a sample of a trace, or of batches of one; the parameters are those of `TokenSampler`.

    Raises
    ------
    ValueError
        No batches.
    """
    sampler = None
    for batch in (source,) if isinstance(source, RoutingTrace) else source:
        sampler = sampler or TokenSampler(batch.meta, most_choices=most_choices, seed=seed)
        sampler.add(batch)
    if sampler is None:
        raise ValueError("no batches to sample")
    return sampler.sample()


def _drawn(
    sequence_T: npt.NDArray[np.generic], position_T: npt.NDArray[np.generic], shift: np.uint64, halvings: int
) -> npt.NDArray[np.bool_]:
    """The pieces whose hash (splitmix64) is in the lowest 2**-halvings of all."""
    piece_T = position_T.astype(np.uint64) >> _PIECE_BITS
    x = (sequence_T.astype(np.uint64) << np.uint64(20)) | piece_T
    x = x + shift
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return np.asarray(x >> np.uint64(64 - halvings) == 0)
