"""What counting a trace gives, and the few numbers that sum it up.

Axes: T token, L MoE layer, E expert, K choice, G rank, F fan-out 0…K.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Fractions = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TraceStats:
    """What was counted; tables that were not asked for are None.

    Parameters
    ----------
    tokens
        T.
    load_LE
        Choices of each expert.
    coactivation_LEE
        Tokens that chose both experts at the layer; the diagonal is the load.
    transition_LEE
        [L-1, E, E]: pairs of a choice at a layer and one at the next MoE layer by the same token.
    rank_load_LG, fan_out_LF, same_rank_L, pairs_L
        With a placement: choices served by each rank; tokens by number of distinct ranks; [L-1]
        pairs of choices at consecutive layers whose two experts share a rank, and all of them.
    ep_groups
        EP groups among which the ranks of `rank_load_LG` are shared out, in order.
    """

    tokens: int
    load_LE: Counts
    coactivation_LEE: Counts | None = None
    transition_LEE: Counts | None = None
    rank_load_LG: Counts | None = None
    fan_out_LF: Counts | None = None
    same_rank_L: Counts | None = None
    pairs_L: Counts | None = None
    ep_groups: int = 1

    @property
    def gini_L(self) -> Fractions:
        """Gini coefficient of each layer's load: 0 when all experts are chosen alike, towards 1 when one takes all.

        nan for a layer without any load.
        """
        return load_gini_L(self.load_LE)

    @property
    def gini(self) -> float:
        """Mean of the Gini coefficients of the layers with any load; nan if there are none."""
        return mean_known(self.gini_L)

    @property
    def balance_pooled_L(self) -> Fractions:
        """Mean / max over ranks of each layer's load, mean of EP groups; nan for a layer without any."""
        load_LG = asked(self.rank_load_LG)
        if self.ep_groups == 1:
            return balance_L(load_LG)
        balance_LD = balance_L(load_LG.reshape(len(load_LG) * self.ep_groups, -1)).reshape(-1, self.ep_groups)
        used_L = (~np.isnan(balance_LD)).sum(axis=1)
        return _ratio(np.nansum(balance_LD, axis=1), used_L)

    @property
    def balance_pooled(self) -> float:
        """Balance with all tokens taken as one step, averaged over the layers with any load; nan if there are none."""
        return mean_known(self.balance_pooled_L)

    @property
    def fan_out_L(self) -> Fractions:
        """Mean over tokens of the distinct ranks that hold a token's choices, by layer; nan without tokens."""
        fan_out_LF = asked(self.fan_out_LF)
        return _ratio(fan_out_LF @ np.arange(fan_out_LF.shape[1]), fan_out_LF.sum(axis=1))

    @property
    def fan_out(self) -> float:
        """Mean over tokens and layers with any choice of the distinct ranks that hold them; nan if there are none."""
        return mean_distinct(asked(self.fan_out_LF))

    @property
    def crossings_L(self) -> Fractions:
        """[L-1]: `crossings` between each layer and the next."""
        return 1 - _ratio(asked(self.same_rank_L), asked(self.pairs_L))

    @property
    def crossings(self) -> float:
        """Fraction of the pairs of choices at consecutive layers whose experts lie on different ranks; nan if none."""
        same, pairs = asked(self.same_rank_L), asked(self.pairs_L)
        return float(1 - _ratio(same.sum(keepdims=True), pairs.sum(keepdims=True))[0])


def mean_distinct(fan_out_LF: Counts) -> float:
    """Mean over tokens and layers with any choice of the distinct ranks (or domains), rounded once; nan if none."""
    counts_F = fan_out_counts_F(fan_out_LF)
    return float(_ratio((counts_F @ np.arange(len(counts_F)))[None], counts_F.sum(keepdims=True))[0])


def fan_out_counts_F(fan_out_LF: Counts) -> Counts:
    """(Token, layer) pairs by distinct ranks: int64 [F], without the layers at which no token chooses anything.

    Such a layer was not recorded, or is none: its tokens would pull the mean towards 0.
    """
    return np.asarray(fan_out_LF[fan_out_LF[:, 1:].any(axis=1)].sum(axis=0))


def mean_known(values: npt.ArrayLike | None) -> float:
    """Mean of the values that are known; nan where none is."""
    known = np.asarray([] if values is None else values, np.float64).ravel()
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else math.nan


def balance_L(rank_load_LG: Counts) -> Fractions:
    """Mean / max over ranks of each layer's load; nan for a layer without any."""
    return _ratio(rank_load_LG.mean(axis=1), rank_load_LG.max(axis=1))


def rank_load_LG(load_LE: Counts, rank_of_expert_LE: npt.NDArray[np.int32], n_ranks: int) -> Counts:
    """Sum the load of the experts on each rank: int64 [L, G]."""
    loads_LG = np.zeros((len(load_LE), n_ranks), np.int64)
    np.add.at(loads_LG, (np.arange(len(load_LE))[:, None], rank_of_expert_LE), load_LE)
    return loads_LG


def load_gini_L(load_LE: Counts) -> Fractions:
    """Gini coefficient of each layer's load: half the mean absolute difference over the mean; nan without load."""
    sorted_LE = np.sort(load_LE.astype(np.float64), axis=1)
    experts = sorted_LE.shape[1]
    skew_L = sorted_LE @ (2.0 * np.arange(1, experts + 1) - experts - 1)
    return _ratio(skew_L, experts * sorted_LE.sum(axis=1))


def asked(counts: Counts | None) -> Counts:
    """Fail when a table was not counted.

    Raises
    ------
    ValueError
        It is None.
    """
    if counts is None:
        raise ValueError("not counted: ask for it when counting (rank_of_expert_LE, coactivation or transition)")
    return counts


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Fractions:
    ratio = np.full(whole.shape, math.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio
