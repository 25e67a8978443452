"""How far load moves between windows of tokens and between topics, and what that does to a plan.

Axes: L MoE layer, E expert, C part (window or topic), W window.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from moecast.traces.statistics.packing import balance_CC
from moecast.traces.statistics.parts import Parts
from moecast.traces.statistics.summary import Counts, Fractions, mean_known


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadDistances:
    """How the load of the parts of a trace differs, two by two.

    Parameters
    ----------
    names
        What each part is.
    tokens_C
        Its tokens.
    distance_CC
        Total variation: half the sum over experts of the difference of their shares of the load,
        averaged over the layers at which both parts make choices; the part of the choices that
        would have to move. 0 alike, 1 nothing in common, nan without such a layer.
    divergence_CC
        Jensen-Shannon divergence in bits (Lin, 1991), averaged over the same layers: 0 to 1.
    noise_CC
        The total variation expected of two parts of this size drawn from one and the same load if
        choices were independent. Tokens of a sequence are alike, so a stable trace shows more than
        this.
    balance_CC
        Balance (mean ÷ max over ranks, all the part's tokens as one step) on part j (column) of a
        plan packed on part i (row) without replicas, `packed_ranks_LE`.
    """

    names: tuple[str, ...]
    tokens_C: Counts
    distance_CC: Fractions
    divergence_CC: Fractions
    noise_CC: Fractions
    balance_CC: Fractions

    @property
    def distance(self) -> float:
        """Mean total variation over pairs of parts; nan when there are fewer than two."""
        return _off_diagonal(self.distance_CC)

    @property
    def noise(self) -> float:
        """Mean of `noise_CC` over pairs of parts."""
        return _off_diagonal(self.noise_CC)

    @property
    def balance_own(self) -> float:
        """Mean balance of plans on the part they were made on; nan without parts."""
        return mean_known(self.balance_CC.diagonal())

    @property
    def balance_other(self) -> float:
        """Mean balance of plans on the other parts."""
        return _off_diagonal(self.balance_CC)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drift:
    """How load differs between windows of the trace in order, and between topics.

    Parameters
    ----------
    window_tokens
        Tokens of a window. A last window of less than half as many is left out.
    windows, topics
        The distances; of topics, those with any tokens.
    """

    window_tokens: int
    windows: LoadDistances
    topics: LoadDistances

    @property
    def neighbours(self) -> float:
        """Mean total variation between a window and the next; nan when there is one window."""
        return mean_known(np.diagonal(self.windows.distance_CC, 1))

    @property
    def first_to_last(self) -> float:
        """Total variation between the first window and the last; nan when there is one window."""
        distance_CC = self.windows.distance_CC
        return float(distance_CC[0, -1]) if len(distance_CC) > 1 else math.nan


def drift(parts: Parts, *, n_ranks: int) -> Drift:
    """Compare the windows and the topics of a trace; plans are packed on `n_ranks` ranks.

    Raises
    ------
    ValueError
        More ranks than experts, or none.
    """
    tokens_W, load_WLE = parts.tokens_W, parts.load_WLE
    if len(tokens_W) > 1 and 2 * tokens_W[-1] < parts.window_tokens:
        tokens_W, load_WLE = tokens_W[:-1], load_WLE[:-1]
    starts = np.arange(len(tokens_W)) * parts.window_tokens
    names = tuple(f"tokens {start:,} to {start + count:,}" for start, count in zip(starts, tokens_W, strict=True))
    return Drift(
        window_tokens=parts.window_tokens,
        windows=load_distances(names, tokens_W, load_WLE, n_ranks=n_ranks),
        topics=load_distances(parts.topics, parts.tokens_C, parts.load_CLE, n_ranks=n_ranks),
    )


def load_distances(names: tuple[str, ...], tokens_C: Counts, load_CLE: Counts, *, n_ranks: int) -> LoadDistances:
    """Compare the load of parts two by two.

    Raises
    ------
    ValueError
        More ranks than experts, or none.
    """
    parts = len(names)
    sums_CL = load_CLE.sum(axis=2, keepdims=True)
    share_CLE = np.zeros(load_CLE.shape)
    np.divide(load_CLE, sums_CL, out=share_CLE, where=sums_CL > 0)
    distance_CC, divergence_CC, noise_CC = np.zeros((3, parts, parts))
    for one in range(parts):
        for two in range(one):
            pair = share_CLE[one], share_CLE[two]
            both_L = (sums_CL[[one, two], :, 0] > 0).all(axis=0)
            distance_CC[one, two] = mean_known(np.where(both_L, total_variation_L(*pair), math.nan))
            divergence_CC[one, two] = mean_known(np.where(both_L, jensen_shannon_L(*pair), math.nan))
            noise_CC[one, two] = mean_known(_noise_L(*pair, sums_CL[one, :, 0], sums_CL[two, :, 0]))
    return LoadDistances(
        names=names,
        tokens_C=tokens_C,
        distance_CC=distance_CC + distance_CC.T,
        divergence_CC=divergence_CC + divergence_CC.T,
        noise_CC=noise_CC + noise_CC.T,
        balance_CC=balance_CC(load_CLE, n_ranks),
    )


def total_variation_L(one_LE: Fractions, two_LE: Fractions) -> Fractions:
    """Half the sum of differences of two distributions over experts, by layer."""
    return np.asarray(np.abs(one_LE - two_LE).sum(axis=-1) / 2)


def jensen_shannon_L(one_LE: Fractions, two_LE: Fractions) -> Fractions:
    """Jensen-Shannon divergence of two distributions over experts in bits, by layer."""
    middle_LE = (one_LE + two_LE) / 2
    return np.asarray((_relative_entropy_L(one_LE, middle_LE) + _relative_entropy_L(two_LE, middle_LE)) / 2)


def _relative_entropy_L(of_LE: Fractions, to_LE: Fractions) -> Fractions:
    ratio_LE = np.ones(of_LE.shape)
    np.divide(of_LE, to_LE, out=ratio_LE, where=of_LE > 0)
    return np.asarray((of_LE * np.log2(ratio_LE)).sum(axis=-1))


def _noise_L(one_LE: Fractions, two_LE: Fractions, of_one_L: Counts, of_two_L: Counts) -> Fractions:
    """Mean absolute difference of two binomial shares, normal approximation, halved and summed; nan without choices."""
    found_L = np.full(len(of_one_L), math.nan)
    both_L = (of_one_L > 0) & (of_two_L > 0)
    one_L, two_L = of_one_L[both_L][:, None], of_two_L[both_L][:, None]
    share_LE = (one_LE[both_L] * one_L + two_LE[both_L] * two_L) / (one_L + two_L)
    variance_LE = share_LE * (1 - share_LE) * (1 / one_L + 1 / two_L)
    found_L[both_L] = np.sqrt(2 * variance_LE / math.pi).sum(axis=1) / 2
    return found_L


def _off_diagonal(values_CC: Fractions) -> float:
    return mean_known(values_CC[~np.eye(len(values_CC), dtype=bool)])
