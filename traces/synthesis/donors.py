"""The donors: real tokens, sequence by sequence, whose paths through the layers a synthesis recombines.

Axes: T donor token, Q donor sequence.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.traces.checks import check_choices
from moecast.traces.synthesis.sample import pieces_T
from moecast.traces.trace import RoutingTrace

Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]

# More parts keep finer drift; larger ones have closer look-alikes.
_MOST_PARTS = 8
_SEQUENCES_IN_PART = 16
_TOKENS_IN_PART = 1 << 9
# A part larger than this is cut further: looking for neighbours takes time by the square of its
# tokens.
_MOST_IN_PART = 1 << 14


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Donors:
    """Real tokens sorted by sequence and position.

    The sequences stand in the order in which the run began them.

    Parameters
    ----------
    trace
        The tokens; weights, steps and source ranks are left out.
    first_Q1
        Tokens of sequence q are ``first_Q1[q]`` to ``first_Q1[q + 1]``.
    sequence_T
        q of each token.
    kind_Q
        The phase and topic of a sequence, one number for both.
    part_Q
        Sequences of one kind and one part of the run (an eighth, or more where there are few) have
        one number, from 0.
    group_T
        Tokens of one part that are of one phase and topic have one number: only these take each
        other's place.

    Raises
    ------
    ValueError, TypeError
        Arrays that do not fit each other, sequences that do not rise from 0 to T, or a token that
        chooses an expert twice.
    """

    trace: RoutingTrace
    first_Q1: Ints
    sequence_T: Indices
    kind_Q: Ints
    part_Q: Ints
    group_T: Ints

    def __post_init__(self) -> None:
        tokens, most = self.trace.n_tokens, np.iinfo(np.int64).max
        check_choices(self.trace.experts_TLK, self.trace.meta.experts)
        first_Q1 = whole_numbers("first_Q1", self.first_Q1, most=tokens)
        if not len(first_Q1) or first_Q1[0] != 0 or first_Q1[-1] != tokens or (np.diff(first_Q1) < 0).any():
            raise ValueError(f"first_Q1: must rise from 0 to the {tokens} tokens")
        sequences = len(first_Q1) - 1
        checked = {
            "first_Q1": first_Q1,
            "sequence_T": whole_numbers(
                "sequence_T", self.sequence_T, most=sequences - 1, shape=(tokens,), dtype=np.int32
            ),
            "kind_Q": whole_numbers("kind_Q", self.kind_Q, most=most, shape=(sequences,)),
            "part_Q": whole_numbers("part_Q", self.part_Q, most=sequences, shape=(sequences,)),
            "group_T": whole_numbers("group_T", self.group_T, most=most, shape=(tokens,)),
        }
        for name, array in checked.items():
            object.__setattr__(self, name, array)

    @property
    def n_tokens(self) -> int:
        """T."""
        return self.trace.n_tokens

    @property
    def n_sequences(self) -> int:
        """Q."""
        return len(self.kind_Q)

    @property
    def length_Q(self) -> Ints:
        """Tokens of each sequence."""
        return np.diff(self.first_Q1)


def donors_of(trace: RoutingTrace) -> Donors:
    """Sort a trace's tokens into sequences; long ones are cut into pieces."""
    kept = dataclasses.replace(trace, step_T=None, source_rank_T=None, weights_TLK=None)
    _, first_row_S, sequence_T = np.unique(pieces_T(kept), return_index=True, return_inverse=True)
    began_S = np.argsort(np.argsort(first_row_S))
    sequence_T = began_S[sequence_T]
    whole = kept.select(np.lexsort((kept.position_T, sequence_T)))
    length_Q = np.bincount(sequence_T)
    first_Q1 = np.concatenate([[0], np.cumsum(length_Q)])
    kind_T = kinds_T(whole)
    kind_Q = kind_T[first_Q1[:-1] + length_Q // 2]
    part_Q = _parts_Q(kind_Q, length_Q)
    return Donors(
        trace=whole,
        first_Q1=first_Q1,
        sequence_T=np.repeat(np.arange(len(length_Q), dtype=np.int32), length_Q),
        kind_Q=kind_Q,
        part_Q=part_Q,
        group_T=np.repeat(part_Q, length_Q) * (int(kind_T.max()) + 1) + kind_T,
    )


def _parts_Q(kind_Q: Ints, length_Q: Ints) -> Ints:
    """Cut the run of each kind into an even number of parts of about as many tokens."""
    part_Q, numbers = np.empty(len(kind_Q), np.int64), 0
    for kind in np.unique(kind_Q):
        members = np.flatnonzero(kind_Q == kind)
        tokens = int(length_Q[members].sum())
        parts = min(_MOST_PARTS, len(members) // _SEQUENCES_IN_PART, tokens // _TOKENS_IN_PART)
        pairs = max(parts // 2, -(-tokens // (2 * _MOST_IN_PART)))
        done_X = (np.cumsum(length_Q[members]) - length_Q[members] / 2) / tokens
        _, part_X = np.unique((done_X * 2 * pairs).astype(np.int64), return_inverse=True)
        part_Q[members] = numbers + part_X
        numbers += int(part_X.max()) + 1
    return part_Q


def kinds_T(trace: RoutingTrace) -> Ints:
    """Number of each token's phase and topic."""
    return trace.phase_T.astype(np.int64) * (len(trace.topics) + 1) + trace.topic_T + 1
