"""The walk: a synthetic sequence follows a donor sequence, leaves it for look-alikes, and crosses over between layers.

Axes: T donor token, R neighbour, L MoE layer, K choice, N token made, B sequence made.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.compiled import njit

UInt64s = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]
Rows = npt.NDArray[np.uint16]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@njit(cache=True, nogil=True, inline="always")
def _next(state_1: UInt64s) -> float:
    """A number from 0 to 1 (SplitMix64 of Steele, Lea and Flood)."""
    state_1[0] += _STEP
    z = state_1[0]
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * 1.1102230246251565e-16


@njit(cache=True, nogil=True)
def walk(
    rows_TLK: Rows,
    neighbours_TR: Indices,
    sequence_T: Indices,
    group_T: Ints,
    first_B: Ints,
    length_B: Ints,
    number_B: UInt64s,
    seed: np.uint64,
    leave: float,
    stay: float,
    cross: float,
    rows_NLK: Rows,
    donor_N: Indices,
) -> None:
    """Make the tokens of whole sequences; each depends on the seed and its number only.

    Parameters
    ----------
    first_B, length_B
        The donor sequence that each one follows: its first token, and how many to make.
    number_B
        The sequence's number, unique in the synthesis.
    leave, stay
        Chance per token to leave the followed sequence for a neighbour's; to stay there for one token more.
    cross
        Chance per token that a neighbour gives the layers from a random one on.
    rows_NLK, donor_N
        What is made: choices, and the donor of the first layers.
    """
    layers, n = rows_TLK.shape[1], 0
    widest = max(layers // 4, 1)
    state_1 = np.empty(1, np.uint64)
    for b in range(len(first_B)):
        state_1[0] = seed + number_B[b] * _MIX_1
        _next(state_1)
        state_1[0] = state_1[0] ^ (state_1[0] >> np.uint64(29)) * _MIX_2
        away, partner, layer, width = -1, -1, 0, 0
        for i in range(length_B[b]):
            home = first_B[b] + i
            if away >= 0:
                away = _follow(away, home, sequence_T, group_T) if _next(state_1) < stay else -1
            elif _next(state_1) < leave:
                away = _neighbour(neighbours_TR[home], _next(state_1))
            donor = away if away >= 0 else home
            donor_N[n] = donor
            rows_NLK[n] = rows_TLK[donor]
            partner = _goes_on(neighbours_TR[donor], partner)
            if partner < 0 and _next(state_1) < cross:
                partner = _neighbour(neighbours_TR[donor], _next(state_1))
                width = 1 + int(_next(state_1) * widest)
                layer = int(_next(state_1) * (layers - width + 1))
            if partner >= 0:
                rows_NLK[n, layer : layer + width] = rows_TLK[partner, layer : layer + width]
            n += 1


@njit(cache=True, nogil=True)
def _follow(away: int, home: int, sequence_T: Indices, group_T: Ints) -> int:
    """The token after `away`, or -1 where its sequence or phase ends."""
    after = away + 1
    if after == len(sequence_T) or sequence_T[after] != sequence_T[away] or group_T[after] != group_T[home]:
        return -1
    return after


@njit(cache=True, nogil=True)
def _neighbour(neighbour_R: Indices, chance: float) -> int:
    return neighbour_R[int(chance * len(neighbour_R))]


@njit(cache=True, nogil=True)
def _goes_on(neighbour_R: Indices, partner: int) -> int:
    """The token after `partner` where that is a neighbour too, else -1."""
    if partner >= 0:
        for neighbour in neighbour_R:
            if neighbour == partner + 1:
                return neighbour
    return -1
