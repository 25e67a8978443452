"""What counting a trace gives, and the few numbers that sum it up.

Axes: T token, L MoE layer, E expert, K choice, G rank, F fan-out 0…K.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


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
        With a placement: choices served by each rank; tokens by number of distinct ranks; [L-1] pairs of choices at
        consecutive layers, and those whose two experts share a rank.
    """

    tokens: int
    load_LE: Counts
    coactivation_LEE: Counts | None = None
    transition_LEE: Counts | None = None
    rank_load_LG: Counts | None = None
    fan_out_LF: Counts | None = None
    same_rank_L: Counts | None = None
    pairs_L: Counts | None = None

    @property
    def gini_L(self) -> npt.NDArray[np.float64]:
        """Gini coefficient of each layer's load: 0 when all experts are chosen alike, towards 1 when one takes all."""
        return gini_L(self.load_LE)

    @property
    def gini(self) -> float:
        """Mean of the layers' Gini coefficients."""
        return float(self.gini_L.mean())

    @property
    def balance_pooled(self) -> float:
        """Balance with all tokens taken as one step: mean / max over ranks, averaged over the layers with any load."""
        return balance(asked(self.rank_load_LG))

    @property
    def fan_out(self) -> float:
        """Mean over tokens and layers of the distinct ranks that hold a token's choices."""
        fan_out_LF = asked(self.fan_out_LF)
        return float((fan_out_LF * np.arange(fan_out_LF.shape[1])).sum() / max(fan_out_LF.sum(), 1))

    @property
    def crossings(self) -> float:
        """Fraction of the pairs of choices at consecutive layers whose experts lie on different ranks; nan if none."""
        pairs = int(asked(self.pairs_L).sum())
        return 1 - int(asked(self.same_rank_L).sum()) / pairs if pairs else float("nan")


def balance(rank_load_LG: npt.NDArray[np.int64]) -> float:
    """Mean / max over ranks, averaged over the layers with any load; 1 is perfect, nan without any load."""
    loaded_LG = rank_load_LG[rank_load_LG.max(axis=1) > 0]
    return float((loaded_LG.mean(axis=1) / loaded_LG.max(axis=1)).mean()) if len(loaded_LG) else float("nan")


def rank_load_LG(load_LE: Counts, rank_of_expert_LE: npt.NDArray[np.int32], n_ranks: int) -> Counts:
    """Sum the load of the experts on each rank: int64 [L, G]."""
    loads_LG = np.zeros((len(load_LE), n_ranks), np.int64)
    np.add.at(loads_LG, (np.arange(len(load_LE))[:, None], rank_of_expert_LE), load_LE)
    return loads_LG


def gini_L(load_LE: Counts) -> npt.NDArray[np.float64]:
    """Gini coefficient of each layer's load: half the mean absolute difference over the mean; 0 without load."""
    sorted_LE = np.sort(load_LE.astype(np.float64), axis=1)
    experts = sorted_LE.shape[1]
    total_L = sorted_LE.sum(axis=1)
    rank_E = np.arange(1, experts + 1)
    skew_L = (sorted_LE * (2 * rank_E - experts - 1)).sum(axis=1)
    loaded_L = total_L > 0
    gini = np.zeros(len(load_LE))
    gini[loaded_L] = skew_L[loaded_L] / (experts * total_L[loaded_L])
    return gini


def asked(counts: Counts | None) -> Counts:
    """Fail when a table was not counted."""
    if counts is None:
        raise ValueError("not counted: ask for it when counting (rank_of_expert_LE, coactivation or transition)")
    return counts
