"""A layer's tokens as its certificates read them: the experts of each, the tokens of each expert, and their pairs.

Axes: T token, K choice, E expert, X (expert, token) pair.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.compiled import entry
from moecast.traces import NO_CHOICE

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


class LayerTokens(NamedTuple):
    """The tokens of one layer, each expert of a token counted once.

    Parameters
    ----------
    expert_TK
        int32; the experts that a token chooses, −1 for none.
    offsets_E1, token_X
        CSR: the tokens of each expert.
    pairs_EE
        int32; tokens that choose both experts; on the diagonal those that choose the one.
    """

    expert_TK: Int32
    offsets_E1: Int
    token_X: Int32
    pairs_EE: Int32

    @classmethod
    def of(cls, experts_TK: npt.ArrayLike, experts: int) -> LayerTokens:
        """Index the choices of a layer; `NO_CHOICE` is none.

        Raises
        ------
        TypeError, ValueError
            No whole numbers, an expert that there is not, or one that a token chooses twice.
        """
        most = np.iinfo(np.uint16).max
        chosen_TK = whole_numbers("experts_TK", experts_TK, most=most, shape=(None, None), dtype=np.int32)
        chosen_TK = np.where(chosen_TK == NO_CHOICE, -1, chosen_TK).astype(np.int32)
        whole_numbers("experts_TK", chosen_TK, least=-1, most=experts - 1, shape=(None, None))
        sorted_TK = np.sort(chosen_TK, axis=1)
        if ((sorted_TK[:, 1:] == sorted_TK[:, :-1]) & (sorted_TK[:, 1:] >= 0)).any():
            raise ValueError("experts_TK: a token chooses an expert twice at one layer")
        return _indexed(chosen_TK, experts)

    @property
    def n(self) -> int:
        """T."""
        return len(self.expert_TK)

    @property
    def experts(self) -> int:
        """E."""
        return len(self.offsets_E1) - 1

    @property
    def load_E(self) -> Int:
        """Choices of each expert."""
        return np.diff(self.offsets_E1)

    @property
    def choices_T(self) -> Int:
        """Choices of each token."""
        return np.asarray((self.expert_TK >= 0).sum(axis=1))

    def only(self, kept_T: npt.NDArray[np.bool_]) -> LayerTokens:
        """Take some of the tokens."""
        return _indexed(np.ascontiguousarray(self.expert_TK[kept_T]), self.experts)

    def fan_out(self, rank_E: npt.ArrayLike) -> int:
        """Copies of all tokens, one for each distinct rank that serves one of its choices; own rank included."""
        ranks_E = whole_numbers("rank_E", rank_E, most=np.iinfo(np.int32).max - 1, shape=(self.experts,))
        rank_TK = np.sort(np.where(self.expert_TK >= 0, ranks_E[self.expert_TK], -1), axis=1)
        first_TK = np.ones(rank_TK.shape, bool)
        first_TK[:, 1:] = rank_TK[:, 1:] != rank_TK[:, :-1]
        return int((first_TK & (rank_TK >= 0)).sum())


def _indexed(expert_TK: Int32, experts: int) -> LayerTokens:
    flat = expert_TK.ravel()
    at = np.flatnonzero(flat >= 0)
    order = np.argsort(flat[at], kind="stable")
    offsets_E1 = np.concatenate([[0], np.cumsum(np.bincount(flat[at], minlength=experts))]).astype(np.int64)
    token_X = (at[order] // max(expert_TK.shape[1], 1)).astype(np.int32)
    return LayerTokens(expert_TK, offsets_E1, token_X, _count_pairs(expert_TK, experts))


@entry
def _count_pairs(expert_TK: Int32, experts: int) -> Int32:
    pairs_EE = np.zeros((experts, experts), np.int32)
    for t in range(expert_TK.shape[0]):
        for a in range(expert_TK.shape[1]):
            if expert_TK[t, a] < 0:
                continue
            # Both halves and the diagonal: who reads a row would otherwise have to ask for every
            # pair which is larger.
            for b in range(expert_TK.shape[1]):
                if expert_TK[t, b] >= 0:
                    pairs_EE[expert_TK[t, a], expert_TK[t, b]] += 1
    return pairs_EE
