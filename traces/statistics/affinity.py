"""How much a choice at one layer says about the same token's choices at the next.

Axes: L MoE layer, E expert.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from moecast.arrays import index, whole_numbers
from moecast.traces.statistics.summary import Counts, Fractions, mean_known

MOST_COUNT = 2**53


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Affinity:
    """Inter-layer expert affinity: what the expert now says about the next layer's.

    The conditional probability P(next layer's expert | this layer's) is that of Yao et al.,
    "Exploiting Inter-Layer Expert Affinity" (ExFlow, arXiv 2401.08383); the two numbers below,
    which sum it up, are ours. ExFlow's published program (github.com/YJHMITWEB/ExFlow) knows one
    expert per token and layer and gives no number for affinity: it scores a placement by the part
    of the steps to the next layer that leave the GPU, which is `crossings` for k = 1. All are
    [L-1], from each layer to the next, over all pairs of a token's choices.

    Parameters
    ----------
    information_L
        Mutual information of the two choices in bits, less what counting alone would show (Miller
        and Madow, 1955: (cells − rows − columns + 1) ÷ 2N nats, cells, rows and columns that are
        not empty); it can fall a little below 0.
    entropy_L
        Bits of a choice at the next layer: the most that could be told.
    likeliest_L
        Probability that a choice at the next layer is among the `choices` likeliest after the
        expert now.
    by_load_L
        The same knowing only the next layer's loads.
    affinity_L
        Scaled: (likeliest − by_load) ÷ (1 − by_load); 0 when the expert now says nothing, 1 when it
        says all. Counting noise pushes it up: compare it between traces of one size only.
    choices
        How many of the likeliest: K.
    """

    information_L: Fractions
    entropy_L: Fractions
    likeliest_L: Fractions
    by_load_L: Fractions
    affinity_L: Fractions
    choices: int

    @property
    def information(self) -> float:
        """Mean of `information_L`; nan when there is none."""
        return mean_known(self.information_L)

    @property
    def affinity(self) -> float:
        """Mean of `affinity_L`; nan when there is none."""
        return mean_known(self.affinity_L)


def affinity(transition_LEE: Counts, *, choices: int) -> Affinity:
    """Sum up the table that `transition_LEE` counts; `choices` is K.

    Raises
    ------
    ValueError, TypeError
        Not a table [L-1, E, E] of counts, or a K that is not 1 to E.
    """
    transition_LEE = whole_numbers("transition_LEE", transition_LEE, most=MOST_COUNT, shape=(None, None, None))
    choices = index("choices", choices, least=1, most=transition_LEE.shape[2])
    information_L, entropy_L, likeliest_L, by_load_L = np.full((4, len(transition_LEE)), math.nan)
    for layer, counts_EE in enumerate(transition_LEE):
        total = counts_EE.sum()
        if not total:
            continue
        next_E = counts_EE.sum(axis=0)
        information_L[layer] = mutual_information(counts_EE)
        entropy_L[layer] = entropy(next_E)
        likeliest_L[layer] = -np.partition(-counts_EE, choices - 1, axis=1)[:, :choices].sum() / total
        by_load_L[layer] = np.sort(next_E)[-choices:].sum() / total
    room_L = 1 - by_load_L
    scaled_L = np.full(len(room_L), math.nan)
    np.divide(likeliest_L - by_load_L, room_L, out=scaled_L, where=room_L > 0)
    return Affinity(
        information_L=information_L,
        entropy_L=entropy_L,
        likeliest_L=likeliest_L,
        by_load_L=by_load_L,
        affinity_L=scaled_L,
        choices=choices,
    )


def mutual_information(counts: Counts) -> float:
    """Mutual information of a two-way table of counts in bits, corrected for the sample's size (Miller and Madow)."""
    total = counts.sum()
    if not total:
        return math.nan
    rows, columns = counts.sum(axis=1), counts.sum(axis=0)
    raw = entropy(rows) + entropy(columns) - entropy(counts.ravel())
    spare = np.count_nonzero(counts) - np.count_nonzero(rows) - np.count_nonzero(columns) + 1
    return float(raw - spare / (2 * total * math.log(2)))


def entropy(counts: Counts) -> float:
    """Entropy of counts in bits, as they stand."""
    filled = counts[counts > 0].astype(np.float64)
    total = filled.sum()
    return float(math.log2(total) - (filled * np.log2(filled)).sum() / total) if total else math.nan
