"""The donors: real tokens, sequence by sequence, whose paths through the layers a synthesis walks along.

Axes: T donor token, Q donor sequence.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from moecast.traces.synthesis.sample import pieces_T
from moecast.traces.trace import RoutingTrace

Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]

# A group larger than this is cut further: looking for neighbours takes time by the square of its tokens.
_MOST_IN_GROUP = 1 << 14


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Donors:
    """Real tokens sorted by sequence and position; the sequences stand in the order in which the run began them.

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
    done_Q
        How far the run was with this kind of tokens at the sequence's middle, 0 to 1.
    group_T
        Tokens of one kind and one half (or, where it is long, smaller part) of the run have one number.
    """

    trace: RoutingTrace
    first_Q1: Ints
    sequence_T: Indices
    kind_Q: Ints
    done_Q: npt.NDArray[np.float64]
    group_T: Ints

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
    done_Q, part_Q = np.empty(len(kind_Q)), np.empty(len(kind_Q), np.int64)
    for kind in np.unique(kind_Q):
        members = np.flatnonzero(kind_Q == kind)
        tokens = length_Q[members].sum()
        done_Q[members] = (np.cumsum(length_Q[members]) - length_Q[members] / 2) / tokens
        halves = 2 * -(-int(tokens) // (2 * _MOST_IN_GROUP))
        part_Q[members] = (done_Q[members] * halves).astype(np.int64)
    return Donors(
        trace=whole,
        first_Q1=first_Q1,
        sequence_T=np.repeat(np.arange(len(length_Q), dtype=np.int32), length_Q),
        kind_Q=kind_Q,
        done_Q=done_Q,
        group_T=np.repeat(part_Q, length_Q) * (int(kind_T.max()) + 1) + kind_T,
    )


def kinds_T(trace: RoutingTrace) -> Ints:
    """Number of each token's phase and topic."""
    return trace.phase_T.astype(np.int64) * (len(trace.topics) + 1) + trace.topic_T + 1
