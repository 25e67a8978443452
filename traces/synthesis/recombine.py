"""Recombination: donors that choose alike trade places, for a stretch of their sequences, and choices at some layers.

Axes: T donor token, M layer made, P part of the run, X its donor tokens, R neighbour, L MoE layer,
K choice,
N token made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner
from moecast.traces.synthesis.donors import Donors

Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]
Rows = npt.NDArray[np.uint16]

# Chosen by benchmarks/synthesis.py: as much as leaves what id, context and sequence explain within
# five per cent.
_MOVED = 0.10
_CROSSED = 0.55
# Tokens of a stretch, on average.
_STRETCH = 8
# Of the layers, the most that are traded.
_WIDEST = 1 / 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Recombination:
    """Which donor stands in which one's place, and with which it traded choices.

    Parameters
    ----------
    donor_T
        int32 [T]: the donor in each one's place. Each part's donors stand in its places, every one
        exactly once.
    partner_T
        int32 [T]: the donor that has this one's choices at some layers, as this one has its; itself
        where none has.
    window_T2
        int32 [T, 2]: first of these layers, and the one after the last.
    """

    donor_T: Indices
    partner_T: Indices
    window_T2: Indices

    @classmethod
    def none(cls, tokens: int) -> Recombination:
        """Every donor in its own place, with its own choices."""
        own_T = np.arange(tokens, dtype=np.int32)
        return cls(donor_T=own_T, partner_T=own_T.copy(), window_T2=np.zeros((tokens, 2), np.int32))

    def renew(self, donors: Donors, neighbours_TR: Indices, own_X: Ints, *, layers: int, seed: tuple[int, ...]) -> None:
        """Recombine one part of the run anew."""
        self.donor_T[own_X] = self.partner_T[own_X] = own_X
        rng = np.random.default_rng(seed)
        order_X, chance_X = rng.permutation(own_X), rng.random(len(own_X))
        stretch_X, most = rng.geometric(1 / _STRETCH, len(own_X)), _MOVED * len(own_X)
        kinds = donors.sequence_T, donors.group_T
        _trade_places(order_X, neighbours_TR, *kinds, chance_X, stretch_X, most, self.donor_T)
        width_X = rng.integers(1, max(int(layers * _WIDEST), 1) + 1, len(own_X))
        first_X = (rng.random(len(own_X)) * (layers - width_X + 1)).astype(np.int64)
        order_X, traded = rng.permutation(own_X), (self.partner_T, self.window_T2)
        layers_X, most = (first_X, first_X + width_X), _CROSSED * len(own_X)
        _trade_choices(order_X, neighbours_TR, donors.sequence_T, *layers_X, most, *traded)


def recombined(
    donors: Donors, neighbours_TR: Indices, dealt: Iterator[tuple[int, int, int]], *, layers: int, seed: int
) -> Iterator[tuple[slice, Recombination]]:
    """Yield the places of each dealt sequence and what stands there; each round of a part is a new recombination."""
    whole = Recombination.none(donors.n_tokens)
    part_T = donors.part_Q[donors.sequence_T]
    own_PX = np.split(np.argsort(part_T, kind="stable"), np.cumsum(np.bincount(part_T))[:-1])
    round_of: dict[int, int] = {}
    for sequence, turn, length in dealt:
        part = int(donors.part_Q[sequence])
        if round_of.get(part) != turn:
            round_of[part] = turn
            whole.renew(donors, neighbours_TR, own_PX[part], layers=layers, seed=(0x5A1AD, seed, part, turn))
        places = slice(int(donors.first_Q1[sequence]), int(donors.first_Q1[sequence]) + length)
        donor_N = whole.donor_T[places].copy()
        yield (
            places,
            Recombination(donor_T=donor_N, partner_T=whole.partner_T[donor_N], window_T2=whole.window_T2[donor_N]),
        )


def needed_MT(pieces: Iterator[tuple[slice, Recombination]], tokens: int, layers: int) -> npt.NDArray[np.bool_]:
    """Which donors' choices at which layers stand somewhere in these pieces: bool [M, T]."""
    mask_MT = np.zeros((layers, tokens), np.bool_)
    for _, made in pieces:
        _mark(made.donor_T, made.partner_T, made.window_T2, mask_MT)
    return mask_MT


@entry
def _mark(donor_N: Indices, partner_N: Indices, window_N2: Indices, mask_MT: npt.NDArray[np.bool_]) -> None:
    for n in range(len(donor_N)):
        # A donor is needed at all layers, its partner only where they traded.
        for layer in range(len(mask_MT)):
            mask_MT[layer, donor_N[n]] = True
        if partner_N[n] != donor_N[n]:
            for layer in range(window_N2[n, 0], window_N2[n, 1]):
                mask_MT[layer, partner_N[n]] = True


@entry
def _trade_places(
    order_X: Ints,
    neighbours_TR: Indices,
    sequence_T: Indices,
    group_T: Ints,
    chance_X: npt.NDArray[np.float64],
    stretch_X: Ints,
    most: float,
    donor_T: Indices,
) -> None:
    """Let stretches that begin with look-alikes change places, until `most` tokens have moved."""
    moved = 0
    for x in range(len(order_X)):
        if moved >= most:
            return
        one = order_X[x]
        other = neighbours_TR[one, int(chance_X[x] * neighbours_TR.shape[1])]
        if other < 0:
            continue
        for i in range(stretch_X[x]):
            a, b = one + i, other + i
            # Both must still stand in their own places: what is written below are they, not who
            # stands there.
            if max(a, b) >= len(donor_T) or donor_T[a] != a or donor_T[b] != b:
                break
            if sequence_T[a] != sequence_T[one] or sequence_T[b] != sequence_T[other] or group_T[a] != group_T[b]:
                break
            donor_T[a], donor_T[b] = b, a
            moved += 2


@entry
def _trade_choices(
    order_X: Ints,
    neighbours_TR: Indices,
    sequence_T: Indices,
    first_X: Ints,
    end_X: Ints,
    most: float,
    partner_T: Indices,
    window_T2: Indices,
) -> None:
    """Let donors trade a window of layers with the nearest that has not traded, until `most` of them have.

    Where the donors after both are look-alikes, too, they trade the same window.
    """
    traded = 0
    for x in range(len(order_X)):
        if traded >= most:
            return
        one = order_X[x]
        other = _free(one, neighbours_TR, partner_T)
        while other >= 0:
            partner_T[one], partner_T[other] = other, one
            window_T2[one, 0], window_T2[one, 1] = first_X[x], end_X[x]
            window_T2[other, 0], window_T2[other, 1] = first_X[x], end_X[x]
            traded += 2
            one, other = one + 1, _after(one, other, neighbours_TR, sequence_T, partner_T)


@inner
def _free(one: int, neighbours_TR: Indices, partner_T: Indices) -> int:
    """The nearest neighbour that has not traded, where `one` has not; -1 where there is none."""
    if partner_T[one] == one:
        for other in neighbours_TR[one]:
            if other >= 0 and partner_T[other] == other:
                return other
    return -1


@entry
def _after(one: int, other: int, neighbours_TR: Indices, sequence_T: Indices, partner_T: Indices) -> int:
    """The donor after `other`, where it and the one after `one` are free look-alikes, else -1."""
    # Not beyond the end of a sequence: what stands there may be of another part, half of whose
    # round is out already.
    if max(one, other) + 1 == len(partner_T):
        return -1
    if sequence_T[one + 1] != sequence_T[one] or sequence_T[other + 1] != sequence_T[other]:
        return -1
    if partner_T[one + 1] == one + 1 and partner_T[other + 1] == other + 1:
        for neighbour in neighbours_TR[one + 1]:
            if neighbour == other + 1:
                return other + 1
    return -1


@entry
def fill(rows_TLK: Rows, donor_N: Indices, partner_N: Indices, window_N2: Indices, rows_NLK: Rows) -> None:
    """Write the choices of each token made: its donor's, and within the window the partner's."""
    for n in range(len(donor_N)):
        rows_NLK[n] = rows_TLK[donor_N[n]]
        if partner_N[n] != donor_N[n]:
            for layer in range(window_N2[n, 0], window_N2[n, 1]):
                rows_NLK[n, layer] = rows_TLK[partner_N[n], layer]
