"""Dealing: which donor sequence each synthetic one follows, so that mix, lengths and drift are the source's.

Axes: Q donor sequence, C topic, B sequence made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.synthesis.donors import Donors

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Topics = Mapping[str, float] | Collection[str]
"""Shares of the tokens by topic, or the only topics there are to be, as recorded."""

# Parts of the run among whose sequences is dealt: more keep finer drift, but need sequences to choose from.
_MOST_PARTS = 8
_SEQUENCES_IN_PART = 16


def deal(donors: Donors, *, tokens: int, seed: int, topics: Topics | None = None) -> Iterator[tuple[int, int]]:
    """Yield the donor sequence that each synthetic one follows, and its tokens; in all exactly `tokens`.

    The order is that of the run, stretched or thinned out: where the run had a sequence of some phase and topic, so
    have we as many as it takes, each following a random one from the same part of the run. In every part each is
    followed once before any is twice.

    Parameters
    ----------
    topics
        None: as the donors have them. Topics not named get none.

    Raises
    ------
    MoecastError
        A topic that the donors do not have.
    """
    share_Q = _shares(donors, topics)
    times_Q = tokens * share_Q
    decks = _Decks(donors, share_Q > 0, seed)
    owed = {int(kind): decks.rng.random() for kind in np.unique(donors.kind_Q)}
    left = tokens
    while left:
        for sequence in np.flatnonzero(share_Q):
            kind = int(donors.kind_Q[sequence])
            owed[kind] += times_Q[sequence]
            while owed[kind] >= 1:
                owed[kind] -= 1
                chosen = decks.draw(int(sequence))
                length = min(int(donors.length_Q[chosen]), left)
                yield chosen, length
                left -= length
                if not left:
                    return


def _shares(donors: Donors, topics: Topics | None) -> Floats:
    """How often each sequence is followed per token made."""
    weight_Q = np.ones(donors.n_sequences)
    if topics is not None:
        topic_Q = donors.trace.topic_T[donors.first_Q1[:-1] + donors.length_Q // 2]
        has_C = np.bincount(topic_Q[topic_Q >= 0], weights=donors.length_Q[topic_Q >= 0], minlength=1)
        names = donors.trace.topics
        weight_C = np.zeros(len(names) + 1)  # the last: of tokens without a topic
        weighed = topics if isinstance(topics, Mapping) else dict.fromkeys(topics)
        for name, weight in weighed.items():
            tokens = has_C[names.index(name)] if name in names and names.index(name) < len(has_C) else 0
            if not tokens:
                raise MoecastError(f"the trace has {', '.join(names) or 'no topics'}", field="topics", value=name)
            if weight is not None and not 0 <= weight < float("inf"):
                raise MoecastError("a weight is finite and not negative", field=f"topics.{name}", value=weight)
            weight_C[names.index(name)] = 1.0 if weight is None else weight / tokens
        if not weight_C.any():
            raise MoecastError("at least one weight must be positive", field="topics")
        weight_Q = weight_C[topic_Q]
    return weight_Q / (weight_Q @ donors.length_Q)


class _Decks:
    """The sequences of each kind and part of the run, shuffled anew whenever all have been drawn."""

    def __init__(self, donors: Donors, usable_Q: npt.NDArray[np.bool_], seed: int) -> None:
        self.rng = np.random.default_rng([0x5EED, seed])
        self._deck_Q = np.zeros(donors.n_sequences, np.int64)
        self._members: list[Ints] = []
        for kind in np.unique(donors.kind_Q[usable_Q]):
            members = np.flatnonzero(donors.kind_Q == kind)
            parts = min(_MOST_PARTS, max(len(members) // _SEQUENCES_IN_PART, 2)) // 2 * 2
            part_X = np.minimum((donors.done_Q[members] * parts).astype(np.int64), parts - 1)
            for part in np.unique(part_X):
                self._deck_Q[members[part_X == part]] = len(self._members)
                self._members.append(members[part_X == part])
        self._left: list[list[int]] = [[] for _ in self._members]

    def draw(self, like: int) -> int:
        deck = int(self._deck_Q[like])
        if not self._left[deck]:
            self._left[deck] = self.rng.permutation(self._members[deck]).tolist()
        return self._left[deck].pop()
