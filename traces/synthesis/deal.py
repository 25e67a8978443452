"""Dealing: in which donor sequence's place each synthetic one stands, so that mix, lengths and drift are the source's.

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


def deal(donors: Donors, *, tokens: int, seed: int, topics: Topics | None = None) -> Iterator[tuple[int, int, int]]:
    """Yield the donor sequence in whose place each synthetic one stands, its round and its tokens.

    In all `tokens`.

    The order is that of the run, stretched or thinned out: where the run had a sequence of some
    phase and topic, so have we as many as it takes, each in the place of a random one from the same
    part of the run. In every part each has its turn once before any has its second: that is a
    round, and a part's rounds follow one another.

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
    times_Q, length_Q = tokens * share_Q, donors.length_Q
    decks = _Decks(donors.part_Q, seed)
    owed = {int(kind): decks.rng.random() for kind in np.unique(donors.kind_Q)}
    left = tokens
    while left:
        for sequence in np.flatnonzero(share_Q):
            kind = int(donors.kind_Q[sequence])
            owed[kind] += times_Q[sequence]
            while owed[kind] >= 1:
                owed[kind] -= 1
                chosen, turn = decks.draw(int(donors.part_Q[sequence]))
                length = min(int(length_Q[chosen]), left)
                yield chosen, turn, length
                left -= length
                if not left:
                    return


def _shares(donors: Donors, topics: Topics | None) -> Floats:
    """How often each sequence has its turn per token made."""
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
                rule = f"the trace has {', '.join(names) or 'no topics'}"
                raise MoecastError(rule, field="topics", value=name)
            if weight is not None and not 0 <= weight < float("inf"):
                rule = "a weight is finite and not negative"
                raise MoecastError(rule, field=f"topics.{name}", value=weight)
            weight_C[names.index(name)] = 1.0 if weight is None else weight / tokens
        if not weight_C.any():
            raise MoecastError("at least one weight must be positive", field="topics")
        weight_Q = weight_C[topic_Q]
    return weight_Q / (weight_Q @ donors.length_Q)


class _Decks:
    """The sequences of each part of the run, shuffled anew whenever all have been drawn."""

    def __init__(self, part_Q: Ints, seed: int) -> None:
        self.rng = np.random.default_rng([0x5EED, seed])
        self._members = [np.flatnonzero(part_Q == part) for part in range(int(part_Q.max()) + 1)]
        self._left: list[list[int]] = [[] for _ in self._members]
        self._rounds = [0] * len(self._members)

    def draw(self, part: int) -> tuple[int, int]:
        if not self._left[part]:
            self._left[part] = self.rng.permutation(self._members[part]).tolist()
            self._rounds[part] += 1
        return self._left[part].pop(), self._rounds[part]
