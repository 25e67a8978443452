"""Which of the finer experts a token gets that chose an expert, and what it chooses where it makes more choices.

Axes: T donor token, E expert of the source, M expert made, K choice of the source, J choice made, R
neighbour, L layer made, D dimension of the sketch, B bin of scores.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner, njit
from moecast.traces.meta import NO_CHOICE

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]
Rows = npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]

# Tokens before and after whose choices are taken where its own and its neighbours' do not suffice.
_REACH = 64
# Bins of all experts together, so that their counts stay in cache, and the fewest of one.
_BINS, _LEAST_BINS = 1 << 16, 64


@entry
def places_TK(parent_TK: Rows, sketch_TD: Floats, direction_ED: Floats) -> Floats:
    """Where each token stands among those of the same expert along its direction, 0 to 1: each place is taken once.

    Tokens are sorted by counting, into bins of equal width; in a bin they stand in their own order,
    which moves none by more than a bin (with 64 experts, a thousandth of the way between the first
    and the last).
    """
    place_TK = _scores_TK(parent_TK, sketch_TD, direction_ED)
    bin_TK, next_EB = _binned(parent_TK, place_TK, len(direction_ED))
    total_E = np.zeros(len(direction_ED), np.int32)
    for expert in range(len(next_EB)):
        for at in range(next_EB.shape[1]):  # from now on: the rank of the bin's next token
            found, next_EB[expert, at] = next_EB[expert, at], total_E[expert]
            total_E[expert] += found
    for token in range(len(parent_TK)):
        for choice in range(parent_TK.shape[1]):
            expert = parent_TK[token, choice]
            if expert != NO_CHOICE:
                at = bin_TK[token, choice]
                # not 0, not 1
                place_TK[token, choice] = (next_EB[expert, at] + np.float32(0.5)) / total_E[expert]
                next_EB[expert, at] += 1
    return place_TK


# A sum that may be taken in any order fills whole vectors, and a rounding moves nobody by a bin's
# width.
@njit(cache=True, nogil=True, fastmath=True)
def _scores_TK(parent_TK: Rows, sketch_TD: Floats, direction_ED: Floats) -> Floats:
    """Where each token lies along the direction of each expert it chose."""
    score_TK = np.zeros(parent_TK.shape, np.float32)
    for token in range(len(parent_TK)):
        for choice in range(parent_TK.shape[1]):
            expert = parent_TK[token, choice]
            if expert != NO_CHOICE:
                score = np.float32(0.0)
                for d in range(direction_ED.shape[1]):
                    score += sketch_TD[token, d] * direction_ED[expert, d]
                score_TK[token, choice] = score
    return score_TK


@inner
def _binned(parent_TK: Rows, score_TK: Floats, experts: int) -> tuple[Indices, Indices]:
    """The bin of each choice's score among those of its expert, and how many each expert's bins hold."""
    low_E, high_E = np.full(experts, np.float32(np.inf)), np.full(experts, np.float32(-np.inf))
    for token in range(len(parent_TK)):
        for choice in range(parent_TK.shape[1]):
            expert = parent_TK[token, choice]
            if expert != NO_CHOICE:
                low_E[expert] = min(low_E[expert], score_TK[token, choice])
                high_E[expert] = max(high_E[expert], score_TK[token, choice])
    bins = max(_BINS // experts, _LEAST_BINS)
    bin_TK, count_EB = np.zeros(parent_TK.shape, np.int32), np.zeros((experts, bins), np.int32)
    for token in range(len(parent_TK)):
        for choice in range(parent_TK.shape[1]):
            expert = parent_TK[token, choice]
            if expert != NO_CHOICE:
                width = max(high_E[expert] - low_E[expert], np.float32(1e-30))
                at = min(int((score_TK[token, choice] - low_E[expert]) / width * bins), bins - 1)
                bin_TK[token, choice] = at
                count_EB[expert, at] += 1
    return bin_TK, count_EB


@entry
def choose(
    parent_TK: Rows,
    place_TK: Floats,
    noise_TK: Floats,
    blur: float,
    first_E: Ints,
    count_E: Ints,
    label_M: Rows,
    neighbours_TR: Indices,
    chance_T2: Floats,
    needed_T: Mask,
    layer: int,
    made_TLJ: Rows,
) -> None:
    """Give each token that is needed its share of choices at a layer, written to uint16 [T, L, J].

    First the nearest finer expert of each expert it chose, then the next nearest, then what
    look-alikes and the tokens around it chose.

    Parameters
    ----------
    place_TK
        Where a choice stands among those of its expert, 0 to 1: which finer expert is near.
    noise_TK, blur
        -½ to ½: times `blur` it moves the places, around in a circle.
    first_E, count_E
        The finer experts of each expert.
    label_M
        Number of each finer expert.
    chance_T2
        0 to 1: rounds the number of choices, and says which choice comes first.
    """
    tokens, most = parent_TK.shape
    choices, widest, neighbours = made_TLJ.shape[2], np.max(count_E), neighbours_TR.shape[1]
    # The last token that took each finer expert: nothing is cleared between tokens.
    taken_M = np.full(len(label_M), -1, np.int64)
    for token in range(tokens):
        if not needed_T[token]:
            continue
        known = 0
        for choice in range(most):
            known += parent_TK[token, choice] != NO_CHOICE
        wanted = choices if known == most else int(known * choices / most + chance_T2[token, 0])
        first, n, visit = int(chance_T2[token, 1] * most), 0, 0
        # its own choices, nearest finer experts first and as often as an expert has any, then
        # others' nearest ones
        while n < wanted and visit < widest + neighbours + 2 * _REACH:
            own = visit < widest
            other = token if own else _other(token, visit - widest, neighbours_TR)
            turn, start = (visit, first) if own else (0, 0)
            visit += 1
            if not 0 <= other < tokens:
                continue
            for k in range(most):
                choice = start + k if start + k < most else start + k - most
                expert = parent_TK[other, choice]
                if n == wanted or expert == NO_CHOICE or turn >= count_E[expert]:
                    continue
                place = place_TK[other, choice] + blur * noise_TK[other, choice]
                place += 1.0 if place < 0.0 else -1.0 if place >= 1.0 else 0.0
                finer = first_E[expert] + _nearest(place, count_E[expert], turn)
                if taken_M[finer] != token:
                    taken_M[finer] = token
                    made_TLJ[token, layer, n] = label_M[finer]
                    n += 1
        # Nobody near has enough: any expert, from a random one on, since a token makes all its
        # choices.
        finer = int(chance_T2[token, 1] * len(label_M))
        while n < wanted:
            if taken_M[finer] != token:
                taken_M[finer] = token
                made_TLJ[token, layer, n] = label_M[finer]
                n += 1
            finer = (finer + 1) % len(label_M)
        for empty in range(n, choices):
            made_TLJ[token, layer, empty] = NO_CHOICE


@entry
def _other(token: int, reach: int, neighbours_TR: Indices) -> int:
    """Neighbours first, then the tokens before and after, further and further away."""
    if reach < neighbours_TR.shape[1]:
        return neighbours_TR[token, reach]
    step = (reach - neighbours_TR.shape[1]) // 2 + 1
    return token + step if reach % 2 else token - step


@inner
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
