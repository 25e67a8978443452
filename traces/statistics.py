"""Statistics of routing, counted in one compiled pass over a trace or its batches.

Load, co-activation and transition come from the routing alone; fan-out, crossings and balance also need to know which
rank holds each expert. Axes: T token, L MoE layer, E expert, K choice, G rank, F fan-out 0…K.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from moecast.traces._count import count_batch
from moecast.traces.trace import RoutingTrace, TraceMeta

Counts = npt.NDArray[np.int64]
Source = RoutingTrace | Iterable[RoutingTrace]


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
        return balance(_asked(self.rank_load_LG))

    @property
    def fan_out(self) -> float:
        """Mean over tokens and layers of the distinct ranks that hold a token's choices."""
        fan_out_LF = _asked(self.fan_out_LF)
        return float((fan_out_LF * np.arange(fan_out_LF.shape[1])).sum() / max(fan_out_LF.sum(), 1))

    @property
    def crossings(self) -> float:
        """Fraction of the pairs of choices at consecutive layers whose experts lie on different ranks; nan if none."""
        pairs = int(_asked(self.pairs_L).sum())
        return 1 - int(_asked(self.same_rank_L).sum()) / pairs if pairs else float("nan")


class TraceCounter:
    """Counts batch after batch; `stats()` may be asked at any time.

    Parameters
    ----------
    meta
        L, E and K of every batch.
    rank_of_expert_LE
        The rank that holds each expert, for the statistics of a placement without replicas.
    n_ranks
        Ranks there are; by default the highest in `rank_of_expert_LE` + 1.
    coactivation, transition
        Count these tables too: L·E·E numbers each.

    Raises
    ------
    ValueError
        `rank_of_expert_LE` is not [L, E] of ranks below `n_ranks`.
    """

    def __init__(
        self,
        meta: TraceMeta,
        *,
        rank_of_expert_LE: npt.ArrayLike | None = None,
        n_ranks: int | None = None,
        coactivation: bool = False,
        transition: bool = False,
    ) -> None:
        layers, experts, choices = meta.shape_LEK
        self.meta, self.tokens = meta, 0
        self._rank_LE = np.zeros((0, experts), np.int32)
        if rank_of_expert_LE is not None:
            self._rank_LE, n_ranks = _checked_ranks(rank_of_expert_LE, (layers, experts), n_ranks)
        placed = layers if rank_of_expert_LE is not None else 0
        self._n_ranks = n_ranks or 0
        self._load_LE = np.zeros((layers, experts), np.int64)
        self._coactivation_LEE = np.zeros((layers if coactivation else 0, experts, experts), np.int64)
        self._transition_LEE = np.zeros((layers - 1 if transition else 0, experts, experts), np.int64)
        self._fan_out_LF = np.zeros((placed, choices + 1), np.int64)
        self._same_rank_L = np.zeros(max(placed - 1, 0), np.int64)
        self._pairs_L = np.zeros(max(placed - 1, 0), np.int64)
        self._coactivation, self._transition = coactivation, transition

    def add(self, trace: RoutingTrace) -> None:
        """Count the tokens of a batch.

        Raises
        ------
        ValueError
            The batch's L, E or K is not the counter's.
        """
        if trace.meta.shape_LEK != self.meta.shape_LEK:
            raise ValueError(f"L, E, K = {trace.meta.shape_LEK}, expected {self.meta.shape_LEK}")
        count_batch(
            trace.experts_TLK,
            self._rank_LE,
            self._n_ranks,
            self._load_LE,
            self._coactivation_LEE,
            self._transition_LEE,
            self._fan_out_LF,
            self._same_rank_L,
            self._pairs_L,
        )
        self.tokens += trace.n_tokens

    def stats(self) -> TraceStats:
        """Return the counts of all batches so far."""
        placed = len(self._rank_LE) > 0
        return TraceStats(
            tokens=self.tokens,
            load_LE=self._load_LE.copy(),
            coactivation_LEE=_mirrored(self._coactivation_LEE, self._load_LE) if self._coactivation else None,
            transition_LEE=self._transition_LEE.copy() if self._transition else None,
            rank_load_LG=rank_load_LG(self._load_LE, self._rank_LE, self._n_ranks) if placed else None,
            fan_out_LF=self._fan_out_LF.copy() if placed else None,
            same_rank_L=self._same_rank_L.copy() if placed else None,
            pairs_L=self._pairs_L.copy() if placed else None,
        )


def trace_stats(
    source: Source,
    *,
    rank_of_expert_LE: npt.ArrayLike | None = None,
    n_ranks: int | None = None,
    coactivation: bool = False,
    transition: bool = False,
) -> TraceStats:
    """Count a trace, or batches of one, in one pass; the parameters are those of `TraceCounter`.

    Raises
    ------
    ValueError
        No batches, batches of different L, E or K, or ranks that do not fit.
    """
    counter = None
    for batch in (source,) if isinstance(source, RoutingTrace) else source:
        counter = counter or TraceCounter(
            batch.meta,
            rank_of_expert_LE=rank_of_expert_LE,
            n_ranks=n_ranks,
            coactivation=coactivation,
            transition=transition,
        )
        counter.add(batch)
    if counter is None:
        raise ValueError("no batches to count")
    return counter.stats()


def load_LE(source: Source) -> Counts:
    """Count the choices of each expert at each layer: int64 [L, E]."""
    return trace_stats(source).load_LE


def coactivation_LEE(source: Source) -> Counts:
    """Count the tokens that chose both experts at a layer: int64 [L, E, E], symmetric, the load on its diagonal."""
    return _asked(trace_stats(source, coactivation=True).coactivation_LEE)


def transition_LEE(source: Source) -> Counts:
    """Count the pairs of a token's choices at consecutive MoE layers: int64 [L-1, E, E]."""
    return _asked(trace_stats(source, transition=True).transition_LEE)


def balance_pooled(source: Source, rank_of_expert_LE: npt.ArrayLike, *, n_ranks: int | None = None) -> float:
    """Balance of a placement with all tokens taken as one step: mean / max over ranks, averaged over layers."""
    return trace_stats(source, rank_of_expert_LE=rank_of_expert_LE, n_ranks=n_ranks).balance_pooled


def fan_out(source: Source, rank_of_expert_LE: npt.ArrayLike) -> float:
    """Count the distinct ranks a token is sent to, averaged over tokens and layers."""
    return trace_stats(source, rank_of_expert_LE=rank_of_expert_LE).fan_out


def crossings(source: Source, rank_of_expert_LE: npt.ArrayLike) -> float:
    """Fraction of the K·K pairs of choices at consecutive layers whose experts lie on different ranks."""
    return trace_stats(source, rank_of_expert_LE=rank_of_expert_LE).crossings


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


def contiguous_ranks_LE(meta: TraceMeta, n_ranks: int) -> npt.NDArray[np.int32]:
    """Rank of each expert when experts are dealt in order, E / G to a rank: int32 [L, E].

    Raises
    ------
    ValueError
        E is not a multiple of `n_ranks`.
    """
    if n_ranks < 1 or meta.experts % n_ranks:
        raise ValueError(f"n_ranks = {n_ranks}: must divide the {meta.experts} experts")
    rank_E = np.arange(meta.experts, dtype=np.int32) // (meta.experts // n_ranks)
    return np.tile(rank_E, (meta.layers, 1))


def _checked_ranks(
    ranks: npt.ArrayLike, shape_LE: tuple[int, int], n_ranks: int | None
) -> tuple[npt.NDArray[np.int32], int]:
    raw_LE = np.asarray(ranks)
    if raw_LE.shape != shape_LE or raw_LE.dtype.kind not in "iu":
        raise ValueError(f"rank_of_expert_LE: must be whole numbers {list(shape_LE)}, not {list(raw_LE.shape)}")
    n_ranks = int(raw_LE.max()) + 1 if n_ranks is None else n_ranks
    if raw_LE.min() < 0 or raw_LE.max() >= n_ranks:
        raise ValueError(f"rank_of_expert_LE: a rank outside 0…{n_ranks - 1}")
    return np.ascontiguousarray(raw_LE, np.int32), n_ranks


def _mirrored(upper_LEE: Counts, load_LE: Counts) -> Counts:
    whole_LEE = upper_LEE + upper_LEE.transpose(0, 2, 1)
    diagonal = np.arange(load_LE.shape[1])
    whole_LEE[:, diagonal, diagonal] = load_LE
    return whole_LEE


def _asked(counts: Counts | None) -> Counts:
    if counts is None:
        raise ValueError("not counted: ask for it when counting (rank_of_expert_LE, coactivation or transition)")
    return counts
