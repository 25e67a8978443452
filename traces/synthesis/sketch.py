"""A sketch of each token's path: tokens that choose alike at all layers lie close together.

Axes: T token, L MoE layer, E expert, K choice, D dimension of the sketch, R neighbour, B token of a
block,
C candidate, M member of a group.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner
from moecast.traces.meta import NO_CHOICE
from moecast.traces.synthesis.donors import Donors

Floats = npt.NDArray[np.float32]

DIMENSIONS = 64
NEIGHBOURS = 8
# A sequence's own mean counts this much beside the token: neighbours are tokens that choose alike
# in texts that do.
_SEQUENCE_WEIGHT = 0.7
_BEFORE_WEIGHT = 0.4
_BLOCK = 512


def sketches_TD(donors: Donors) -> Floats:
    """Project each token's choices at all layers, rare experts counting more, to unit vectors: float32 [T, D].

    A random projection keeps the angles between the tokens' 0/1 vectors (Johnson and
    Lindenstrauss).
    """
    layers, experts, _ = donors.trace.meta.shape_LEK
    rows_TLK = donors.trace.experts_TLK
    load_LE = _load_LE(rows_TLK, experts)
    weight_LE = 1.0 / np.sqrt(np.maximum(load_LE, 1.0) / max(donors.n_tokens, 1))
    axes_LED = np.random.default_rng(0).standard_normal((layers, experts, DIMENSIONS), dtype=np.float32)
    sketch_TD = _project(rows_TLK, (axes_LED * weight_LE[..., None]).astype(np.float32))
    return _unit(sketch_TD - sketch_TD.mean(axis=0))


def neighbours_TR(
    donors: Donors, sketch_TD: Floats, *, progress: Callable[[int, int], None] | None = None
) -> npt.NDArray[np.int32]:
    """The donors of its group most like each one, nearest first: int32 [T, R], -1 where there is none.

    Only those are kept that have the token among theirs, too, so that none is a look-alike of very
    many.
    """
    sums_QD = np.add.reduceat(sketch_TD, donors.first_Q1[:-1], axis=0)
    before_TD = np.roll(sketch_TD, 1, axis=0)
    before_TD[donors.first_Q1[:-1]] = 0
    parts = sketch_TD, _BEFORE_WEIGHT * before_TD, _SEQUENCE_WEIGHT * _unit(sums_QD)[donors.sequence_T]
    near_TD = np.concatenate(parts, axis=1, dtype=np.float32)
    found_TR = np.full((donors.n_tokens, NEIGHBOURS), -1, np.int32)
    done = 0
    for group in np.unique(donors.group_T):
        members = np.flatnonzero(donors.group_T == group)
        near_MD = near_TD[members]
        best_MR = np.full((len(members), NEIGHBOURS), -np.inf, np.float32)
        for start in range(0, len(members), _BLOCK):  # nearness is mutual: each pair is looked at once
            near_BC = near_MD[start : start + _BLOCK] @ near_MD[start:].T
            _closest(near_BC, start, members, best_MR, found_TR)
        done += len(members)
        if progress:
            progress(done, donors.n_tokens)
    return _mutual(found_TR)


def _unit(vector_TD: Floats) -> Floats:
    length_T = np.linalg.norm(vector_TD, axis=1, keepdims=True)
    return (vector_TD / np.maximum(length_T, 1e-12)).astype(np.float32)


def _load_LE(rows_TLK: npt.NDArray[np.uint16], experts: int) -> npt.NDArray[np.float64]:
    counts = [np.bincount(rows_TLK[:, layer].ravel(), minlength=NO_CHOICE + 1) for layer in range(rows_TLK.shape[1])]
    return np.stack([count_E[:experts] for count_E in counts]).astype(np.float64)


@entry
def _project(rows_TLK: npt.NDArray[np.uint16], axes_LED: Floats) -> Floats:
    tokens, layers, choices = rows_TLK.shape
    sketch_TD = np.zeros((tokens, axes_LED.shape[2]), np.float32)
    for token in range(tokens):
        for layer in range(layers):
            for choice in range(choices):
                expert = rows_TLK[token, layer, choice]
                if expert != NO_CHOICE:
                    for d in range(axes_LED.shape[2]):  # innermost, since it is contiguous and fills whole vectors
                        sketch_TD[token, d] += axes_LED[layer, expert, d]
    return sketch_TD


@entry
def _closest(
    near_BC: Floats, start: int, token_M: npt.NDArray[np.int64], best_MR: Floats, found_TR: npt.NDArray[np.int32]
) -> None:
    """Take in how near members `start` and on (rows: the first of them) are to each other."""
    last = best_MR.shape[1] - 1
    for b in range(len(near_BC)):
        for c in range(b + 1, near_BC.shape[1]):
            # Most pairs are not among the nearest: one comparison with the worst that is kept says
            # so.
            near = near_BC[b, c]
            if near > best_MR[start + b, last]:
                _insert(near, token_M[start + c], best_MR[start + b], found_TR[token_M[start + b]])
            if near > best_MR[start + c, last]:
                _insert(near, token_M[start + b], best_MR[start + c], found_TR[token_M[start + c]])


@inner
def _insert(near: float, token: int, best_R: Floats, row_R: npt.NDArray[np.int32]) -> None:
    """Put a token among the nearest, behind those as near."""
    place = len(best_R) - 1
    while place > 0 and near > best_R[place - 1]:
        best_R[place] = best_R[place - 1]
        row_R[place] = row_R[place - 1]
        place -= 1
    best_R[place] = near
    row_R[place] = token


@entry
def _mutual(found_TR: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    mutual_TR = np.full_like(found_TR, -1)
    for token in range(len(found_TR)):
        for place in range(found_TR.shape[1]):
            other = found_TR[token, place]
            if other >= 0 and np.any(found_TR[other] == token):
                mutual_TR[token, place] = other
    return mutual_TR
