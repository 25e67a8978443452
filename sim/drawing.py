"""Drawing sequences from a trace, in an order, and which ranks serve which topics.

See docs/design.md, 6.

Axes: T token, G DP rank, S sequence, Q place in the drawing order, C topic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry

if TYPE_CHECKING:
    from moecast.traces import RoutingTrace

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sequences:
    """The sequences of a trace: rows of sequence s are ``row_T[first_S1[s]:first_S1[s + 1]]``, by position."""

    row_T: Int
    first_S1: Int
    topic_S: Int

    @property
    def length_S(self) -> Int:
        """Tokens of each sequence."""
        return np.diff(self.first_S1)

    @property
    def n(self) -> int:
        """S."""
        return len(self.topic_S)

    def only(self, keep_S: Bool) -> Sequences:
        """Keep some of the sequences."""
        keep_T = np.repeat(keep_S, self.length_S)
        first_S1 = np.concatenate([[0], np.cumsum(self.length_S[keep_S])])
        return Sequences(row_T=self.row_T[keep_T], first_S1=first_S1, topic_S=self.topic_S[keep_S])


def sequences_of(trace: RoutingTrace, keep_T: Bool) -> Sequences:
    """Group the tokens where `keep_T` holds into sequences; a sequence has the topic of its first token."""
    row_T = np.flatnonzero(keep_T)
    sequence_T = trace.sequence_T[row_T].astype(np.int64)
    key_T = (sequence_T << 32) | trace.position_T[row_T]
    if np.any(key_T[1:] < key_T[:-1]):  # most traces are in order, and sorting takes longest here
        order = np.argsort(key_T, kind="stable")
        row_T, sequence_T = row_T[order], sequence_T[order]
    changes = np.flatnonzero(np.diff(sequence_T)) + 1
    first_S1 = np.concatenate([[0], changes, [len(row_T)]]) if len(row_T) else np.zeros(1, np.int64)
    return Sequences(row_T=row_T, first_S1=first_S1, topic_S=trace.topic_T[row_T[first_S1[:-1]]].astype(np.int64))


def shuffled(n: int, rounds: int, rng: np.random.Generator) -> Int:
    """Put 0 to n - 1 in random order, `rounds` times anew."""
    return np.concatenate([rng.permutation(n) for _ in range(rounds)])


def weighted_order(
    sequences: Sequences, weight_C: Float, cost_S: Int, *, need: int | None, rng: np.random.Generator
) -> Int:
    """Make an order whose every beginning spends `cost_S` on the topics by weight, to within one sequence.

    The next sequence comes from the topic that lags most behind its share; within a topic the order
    is random. It ends where a topic has no sequence left; with `need`, topics start anew until the
    order costs that much.
    """
    share_C = weight_C / weight_C.sum()
    queues = []
    for topic, share in enumerate(share_C):
        members = np.flatnonzero(sequences.topic_S == topic) if share else np.empty(0, np.int64)
        rounds = 1
        if need is not None and len(members):  # a topic runs ahead of its share by less than one sequence
            rounds += int((need * share + cost_S.max()) // cost_S[members].sum())
        queues.append(members[shuffled(len(members), rounds, rng)])
    ends_C1 = np.concatenate([[0], np.cumsum([len(queue) for queue in queues])])
    limit = np.iinfo(np.int64).max if need is None else need
    return _interleave(np.concatenate(queues), ends_C1, share_C, cost_S, limit)


@entry
def _interleave(queue_Q: Int, first_C1: Int, share_C: Float, cost_S: Int, limit: int) -> Int:
    order_Q = np.empty(len(queue_Q), np.int64)
    next_C = first_C1[:-1].copy()
    given_C = np.zeros(len(share_C))
    total, n = 0, 0
    while total < limit:
        topic = np.argmax(share_C * (total + 1) - given_C)  # + 1: the first one goes by share, too
        if next_C[topic] == first_C1[topic + 1]:
            break
        sequence = queue_Q[next_C[topic]]
        next_C[topic] += 1
        order_Q[n] = sequence
        n += 1
        given_C[topic] += cost_S[sequence]
        total += cost_S[sequence]
    return order_Q[:n]


def ranks_of_topics(topic_S: Int, cost_S: Int, weight_C: Float | None, ranks: int) -> Bool:
    """Share ranks out to topics in order, by what they cost (or by weight): which rank serves which sequence.

    Parameters
    ----------
    topic_S, cost_S
        Topic of each sequence (-1: not known, any rank), and its tokens or 1.
    weight_C
        Shares of the topics; None: as the sequences have them.

    Returns
    -------
    bool [S, G]. A rank on which two topics meet serves both.
    """
    known_S = topic_S >= 0
    topics = int(topic_S.max(initial=-1)) + 1
    share_C = np.bincount(topic_S[known_S], cost_S[known_S], topics) if weight_C is None else weight_C[:topics]
    end_C = np.cumsum(share_C) / max(float(share_C.sum()), 1e-300) * ranks
    begin_C = end_C - share_C / max(float(share_C.sum()), 1e-300) * ranks
    at_G = np.arange(ranks)
    serves_CG = (at_G + 1 > begin_C[:, None] + 1e-9) & (at_G < end_C[:, None] - 1e-9)
    serves_SG = np.ones((len(topic_S), ranks), bool)
    serves_SG[known_S] = serves_CG[topic_S[known_S]]
    return serves_SG
