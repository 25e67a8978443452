"""Filling ranks with the tokens of drawn sequences, step by step: prompts in chunks, or running sequences.

Axes: G DP rank, S sequence, Q place in the drawing order, W step, B place of a rank (a token in
prefill, a running sequence in decode), F place of any rank that is free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner
from moecast.sim.drawing import Sequences
from moecast.sim.parts import Part

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


class Filling(Protocol):
    """How sequences fill so many places of each rank in so many steps."""

    @property
    def cost_S(self) -> Int:
        """What each sequence takes up of what `need` counts."""
        ...

    @property
    def need(self) -> int:
        """What the sequences that are drawn must come to, so that they are sure to be enough."""
        ...

    @property
    def too_few(self) -> int | None:
        """The steps that can be filled, where there are not even enough sequences to try; else None."""
        ...

    def fill(self, order_Q: Int, serves_SG: Bool | None, rng: np.random.Generator) -> tuple[Int, int]:
        """Fill ranks: index into the sequences' rows [W, G, B], and how many steps were filled."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fills:
    """What is to be filled: of `ranks` ranks `places` each, in each of `steps` steps."""

    sequences: Sequences
    ranks: int
    places: int
    steps: int

    @property
    def _per_step(self) -> int:
        return self.ranks * self.places


class _Prompts(_Fills):
    """Whole prompts, cut where a rank is full."""

    @property
    def cost_S(self) -> Int:
        """Its tokens."""
        return self.sequences.length_S

    @property
    def need(self) -> int:
        """What is asked and, beyond it, the rest of one sequence on each rank."""
        return self._per_step * self.steps + self.ranks * int(self.sequences.length_S.max())

    @property
    def too_few(self) -> int | None:
        """As of `Filling`."""
        there = len(self.sequences.row_T)
        return there // self._per_step if self._per_step * self.steps > there else None

    def fill(self, order_Q: Int, serves_SG: Bool | None, rng: np.random.Generator) -> tuple[Int, int]:  # noqa: ARG002
        """As of `Filling`; nothing but the order is random."""
        return _fill_prompts(order_Q, self.sequences.first_S1, self.ranks, self.places, self.steps, serves_SG)


class _Running(_Fills):
    """Running sequences, each replaced by a fresh one where it ends."""

    @property
    def cost_S(self) -> Int:
        """One place."""
        return np.ones(self.sequences.n, np.int64)

    @property
    def need(self) -> int:
        """A place's first sequence lasts a step or more, each later one at least the shortest length."""
        return self._per_step * (1 - (1 - self.steps) // int(self.sequences.length_S.min()))

    @property
    def too_few(self) -> int | None:
        """As of `Filling`."""
        return 0 if self._per_step > self.sequences.n else None

    def fill(self, order_Q: Int, serves_SG: Bool | None, rng: np.random.Generator) -> tuple[Int, int]:
        """As of `Filling`; the first ones begin anywhere."""
        start_Q, first_S1 = rng.random(len(order_Q)), self.sequences.first_S1
        return _fill_running(order_Q, start_Q, first_S1, self.ranks, self.places, self.steps, serves_SG)


_OF_PART: dict[Part, Callable[..., Filling]] = {Part.PREFILL: _Prompts, Part.DECODE: _Running}


def filling_of(part: Part, sequences: Sequences, *, ranks: int, places: int, steps: int) -> Filling:
    """How a part's sequences fill ranks."""
    return _OF_PART[part](sequences=sequences, ranks=ranks, places=places, steps=steps)


@entry
def _fill_prompts(
    order_Q: Int, first_S1: Int, ranks: int, tokens: int, steps: int, serves_SG: Bool | None = None
) -> tuple[Int, int]:
    """Fill ranks with whole sequences, cut where a rank is full.

    The rest goes on there in the next step.

    Each next sequence goes to the rank that has fewest tokens in this step, the lowest of equals;
    with `serves_SG` first of those that serve it, as long as one of these has room.

    Returns
    -------
    at_WGB
        Index into `row_T` of each token.
    done
        Steps that were filled; fewer than asked where the order ran out.
    """
    at_WGB = np.empty((steps, ranks, tokens), np.int64)
    next_G, end_G = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    filled_G = np.zeros(ranks, np.int64)
    drawn = 0
    for step in range(steps):
        filled_G[:] = 0
        for rank in range(ranks):  # the rest of a prompt stays on its rank: what came before it is cached there
            _move(at_WGB[step, rank], rank, filled_G, next_G, end_G)
        while True:
            rank = int(np.argmin(filled_G))
            if filled_G[rank] == tokens:  # the emptiest one is full, so all are
                break
            if drawn == len(order_Q):
                # a step with empty places would not be the batch that was asked for
                return at_WGB, step
            sequence = order_Q[drawn]
            drawn += 1
            if serves_SG is not None:
                rank = _emptiest(filled_G, serves_SG[sequence], tokens, rank)
            next_G[rank], end_G[rank] = first_S1[sequence], first_S1[sequence + 1]
            _move(at_WGB[step, rank], rank, filled_G, next_G, end_G)
    return at_WGB, steps


@inner
def _emptiest(filled_G: Int, serves_G: Bool, tokens: int, otherwise: int) -> int:
    """The serving rank with fewest tokens, the lowest of equals; another one where these are full."""
    best, least = otherwise, tokens
    for rank in range(len(filled_G)):
        if serves_G[rank] and filled_G[rank] < least:
            best, least = rank, filled_G[rank]
    return best


@entry
def _move(at_B: Int, rank: int, filled_G: Int, next_G: Int, end_G: Int) -> None:
    count = min(end_G[rank] - next_G[rank], len(at_B) - filled_G[rank])
    for i in range(count):
        at_B[filled_G[rank] + i] = next_G[rank] + i
    filled_G[rank] += count
    next_G[rank] += count


@entry
def _fill_running(
    order_Q: Int,
    start_Q: Float,
    first_S1: Int,
    ranks: int,
    sequences: int,
    steps: int,
    serves_SG: Bool | None = None,
) -> tuple[Int, int]:
    """Take the next position of each running sequence in each step.

    One that ends is replaced by a fresh one.

    The first sequences are dealt to the ranks in turn and start at ``start_Q`` (0 to 1) of their
    length, so that the first step finds a batch in mid-service; fresh ones start at their
    beginning. With `serves_SG` the same sequences run in the same steps: of those that begin in a
    step, each goes to a free place of a rank that serves it if there is one.

    Returns
    -------
    at_WGB
        Index into `row_T` of each token.
    done
        Steps that were filled; fewer than asked where the order ran out.
    """
    at_WGB = np.empty((steps, ranks, sequences), np.int64)
    next_GB, end_GB = np.zeros((ranks, sequences), np.int64), np.zeros((ranks, sequences), np.int64)
    drawn = 0
    free_F = np.empty(ranks * sequences, np.int64)
    for step in range(steps):
        free = 0
        for place in range(sequences):
            for rank in range(ranks):
                if next_GB[rank, place] == end_GB[rank, place]:
                    free_F[free] = rank * sequences + place
                    free += 1
        if drawn + free > len(order_Q):
            return at_WGB, step
        # Who begins does not depend on who serves whom: else plans would be compared on different
        # tokens.
        begin_F = order_Q[drawn : drawn + free].copy()
        which_F = np.arange(free)
        if serves_SG is not None:
            which_F = _matched(begin_F, free_F[:free] // sequences, serves_SG)
        for f in range(free):
            rank, place = free_F[f] // sequences, free_F[f] % sequences
            first, end = first_S1[begin_F[which_F[f]]], first_S1[begin_F[which_F[f]] + 1]
            # By the sequence and not by the place: it is equally far on whichever rank it runs.
            skip = int(start_Q[drawn + which_F[f]] * (end - first)) if step == 0 else 0
            next_GB[rank, place], end_GB[rank, place] = first + skip, end
        drawn += free
        for rank in range(ranks):
            for place in range(sequences):
                at_WGB[step, rank, place] = next_GB[rank, place]
                next_GB[rank, place] += 1
    return at_WGB, steps


@inner
def _matched(begin_F: Int, rank_F: Int, serves_SG: Bool) -> Int:
    """For each free place the sequence that begins there: one that its rank serves, the others where room is left."""
    which_F = np.full(len(begin_F), -1)
    for i in range(len(begin_F)):
        for f in range(len(rank_F)):
            if which_F[f] < 0 and serves_SG[begin_F[i], rank_F[f]]:
                which_F[f] = i
                break
    taken_F = np.zeros(len(begin_F), np.bool_)
    for f in range(len(rank_F)):
        if which_F[f] >= 0:
            taken_F[which_F[f]] = True
    # The others in their order: where nobody serves anybody, places are filled as if that had not
    # been asked.
    i = 0
    for f in range(len(rank_F)):
        if which_F[f] < 0:
            while taken_F[i]:
                i += 1
            which_F[f] = i
            i += 1
    return which_F
