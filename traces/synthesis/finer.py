"""Which of the finer experts a token gets that chose an expert, and what it chooses where it makes more choices.

Axes: T donor token, E expert of the source, M expert made, K choice of the source, J choice made, R neighbour,
D dimension of the sketch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.compiled import njit
from moecast.traces.meta import NO_CHOICE

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]
Rows = npt.NDArray[np.uint16]

# Tokens before and after whose choices are taken where its own and its neighbours' do not suffice.
_REACH = 64


@njit(cache=True, nogil=True)
def scores_TK(parent_TK: Rows, sketch_TD: Floats, direction_ED: Floats) -> Floats:
    """Where each token lies along the direction of each expert it chose."""
    score_TK = np.zeros(parent_TK.shape, np.float32)
    for token in range(len(parent_TK)):
        for choice in range(parent_TK.shape[1]):
            expert = parent_TK[token, choice]
            if expert != NO_CHOICE:
                score_TK[token, choice] = np.dot(sketch_TD[token], direction_ED[expert])
    return score_TK


@njit(cache=True, nogil=True)
def places_TK(parent_TK: Rows, score_TK: Floats, experts: int) -> Floats:
    """Where each token stands among those of the same expert, 0 to 1."""
    tokens, choices = parent_TK.shape
    count_E = np.zeros(experts + 1, np.int64)
    for token in range(tokens):
        for choice in range(choices):
            count_E[min(parent_TK[token, choice], experts)] += 1
    next_E = np.cumsum(count_E) - count_E
    first_E = next_E.copy()
    score_X, at_X = np.empty(tokens * choices, np.float32), np.empty(tokens * choices, np.int64)
    for token in range(tokens):
        for choice in range(choices):
            expert = min(parent_TK[token, choice], experts)
            score_X[next_E[expert]] = score_TK[token, choice]
            at_X[next_E[expert]] = token * choices + choice
            next_E[expert] += 1
    place_X = np.zeros(tokens * choices, np.float32)
    for expert in range(experts):
        start, count = first_E[expert], count_E[expert]
        order = np.argsort(score_X[start : start + count], kind="mergesort")
        for rank in range(count):
            place_X[at_X[start + order[rank]]] = (rank + 0.5) / count
    return place_X.reshape(tokens, choices)


@njit(cache=True, nogil=True)
def choose(
    parent_TK: Rows,
    place_TK: Floats,
    first_E: Ints,
    count_E: Ints,
    label_M: Rows,
    neighbours_TR: Indices,
    choices: int,
    chance_T2: Floats,
) -> Rows:
    """Give each token its share of choices: uint16 [T, J].

    First the nearest finer expert of each expert it chose, then the next nearest, then what look-alikes and the tokens
    around it chose.

    Parameters
    ----------
    place_TK
        Where a choice stands among those of its expert, 0 to 1: which finer expert is near.
    first_E, count_E
        The finer experts of each expert.
    label_M
        Number of each finer expert.
    chance_T2
        0 to 1: rounds the number of choices, and says which choice comes first.
    """
    tokens, most = parent_TK.shape
    made_TJ = np.full((tokens, choices), np.uint16(NO_CHOICE), np.uint16)
    taken_M = np.full(len(label_M), -1, np.int64)
    turns = np.max(count_E)
    for token in range(tokens):
        known = np.sum(parent_TK[token] != NO_CHOICE)
        wanted = choices if known == most else int(known * choices / most + chance_T2[token, 0])
        start, n = int(chance_T2[token, 1] * most), 0
        for turn in range(turns):
            n = _take(
                token, parent_TK[token], place_TK[token], first_E, count_E, turn, start, label_M, taken_M, made_TJ, n,
                wanted,
            )  # fmt: skip
        reach = 0
        while n < wanted and reach < neighbours_TR.shape[1] + 2 * _REACH:
            other = _other(token, reach, neighbours_TR)
            if 0 <= other < tokens:
                n = _take(
                    token, parent_TK[other], place_TK[other], first_E, count_E, 0, 0, label_M, taken_M, made_TJ, n,
                    wanted,
                )  # fmt: skip
            reach += 1
        finer = int(chance_T2[token, 1] * len(label_M))
        while n < wanted:
            if taken_M[finer] != token:
                taken_M[finer] = token
                made_TJ[token, n] = label_M[finer]
                n += 1
            finer = (finer + 1) % len(label_M)
    return made_TJ


@njit(cache=True, nogil=True)
def _take(
    token: int,
    parent_K: Rows,
    place_K: Floats,
    first_E: Ints,
    count_E: Ints,
    turn: int,
    start: int,
    label_M: Rows,
    taken_M: Ints,
    made_TJ: Rows,
    n: int,
    wanted: int,
) -> int:
    """Take the `turn`-th nearest finer expert of each choice until there are enough; return how many there are."""
    for k in range(len(parent_K)):
        choice = (start + k) % len(parent_K)
        expert = parent_K[choice]
        if n < wanted and expert != NO_CHOICE and turn < count_E[expert]:
            finer = first_E[expert] + _nearest(place_K[choice], count_E[expert], turn)
            if taken_M[finer] != token:
                taken_M[finer] = token
                made_TJ[token, n] = label_M[finer]
                n += 1
    return n


@njit(cache=True, nogil=True)
def _other(token: int, reach: int, neighbours_TR: Indices) -> int:
    """Neighbours first, then the tokens before and after, further and further away."""
    if reach < neighbours_TR.shape[1]:
        return neighbours_TR[token, reach]
    step = (reach - neighbours_TR.shape[1]) // 2 + 1
    return token + step if reach % 2 else token - step


@njit(cache=True, nogil=True)
def _nearest(place: float, count: int, turn: int) -> int:
    """The `turn`-th nearest of `count` equal parts of 0 to 1."""
    low = min(int(place * count), count - 1)
    high, nearest = low + 1, low
    low -= 1
    for _ in range(turn):
        if high == count or (low >= 0 and place * count - low - 1 <= high - place * count):
            nearest = low
            low -= 1
        else:
            nearest = high
            high += 1
    return nearest
