"""Statistics of routing: load, co-activation and transition.

With a placement balance, fan-out and crossings.

Each takes a trace or batches of one, such as `iter_trace` yields. Ask `trace_stats` for several at
once: it counts them in one pass. Axes: L MoE layer, E expert, G rank.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.traces.meta import TraceMeta
from moecast.traces.statistics.counter import Source, count_trace
from moecast.traces.statistics.summary import Counts, TraceStats, asked


def trace_stats(
    source: Source,
    *,
    rank_of_expert_LE: npt.ArrayLike | None = None,
    n_ranks: int | None = None,
    coactivation: bool = False,
    transition: bool = False,
    crossings: bool = True,
) -> TraceStats:
    """Count a trace, or batches of one, in one pass; the parameters are those of `TraceCounter`.

    Raises
    ------
    ValueError
        No batches, batches of different L, E or K, or ranks that do not fit.
    """
    return count_trace(
        source,
        rank_of_expert_LE=rank_of_expert_LE,
        n_ranks=n_ranks,
        coactivation=coactivation,
        transition=transition,
        crossings=crossings,
    ).stats()


def load_LE(source: Source) -> Counts:
    """Count the choices of each expert at each layer: int64 [L, E]."""
    return trace_stats(source).load_LE


def coactivation_LEE(source: Source) -> Counts:
    """Count the tokens that chose both experts at a layer: int64 [L, E, E], symmetric, the load on its diagonal."""
    return asked(trace_stats(source, coactivation=True).coactivation_LEE)


def transition_LEE(source: Source) -> Counts:
    """Count the pairs of a token's choices at consecutive MoE layers: int64 [L-1, E, E]."""
    return asked(trace_stats(source, transition=True).transition_LEE)


def balance_pooled(source: Source, rank_of_expert_LE: npt.ArrayLike, *, n_ranks: int | None = None) -> float:
    """Balance of a placement with all tokens taken as one step: mean / max over ranks, averaged over layers."""
    return trace_stats(source, rank_of_expert_LE=rank_of_expert_LE, n_ranks=n_ranks, crossings=False).balance_pooled


def fan_out(source: Source, rank_of_expert_LE: npt.ArrayLike) -> float:
    """Count the distinct ranks a token is sent to, averaged over tokens and layers."""
    return trace_stats(source, rank_of_expert_LE=rank_of_expert_LE, crossings=False).fan_out


def crossings(source: Source, rank_of_expert_LE: npt.ArrayLike) -> float:
    """Fraction of the K·K pairs of choices at consecutive layers whose experts lie on different ranks."""
    return trace_stats(source, rank_of_expert_LE=rank_of_expert_LE).crossings


def contiguous_ranks_LE(meta: TraceMeta, n_ranks: int) -> npt.NDArray[np.int32]:
    """Rank of each expert when they are dealt in order: int32 [L, E].

    The first ranks take what does not divide.

    Raises
    ------
    ValueError
        More ranks than experts, or none.
    """
    if not 1 <= n_ranks <= meta.experts:
        raise ValueError(f"n_ranks = {n_ranks}: must be from 1 to the {meta.experts} experts")
    parts = np.array_split(np.arange(meta.experts), n_ranks)
    rank_E = np.repeat(np.arange(n_ranks, dtype=np.int32), [len(part) for part in parts])
    return np.tile(rank_E, (meta.layers, 1))
