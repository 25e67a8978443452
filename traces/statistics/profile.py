"""All that is known of what is in a trace, from one pass over its batches.

Axes: T token, L MoE layer, E expert, K choice, G rank, F fan-out 0…K.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.traces.meta import TraceMeta
from moecast.traces.statistics.affinity import Affinity, affinity
from moecast.traces.statistics.coactivation import Coactivation, coactivation
from moecast.traces.statistics.counter import Source, TraceCounter
from moecast.traces.statistics.dependence import Dependence, dependence
from moecast.traces.statistics.drift import Drift, drift
from moecast.traces.statistics.findings import Finding
from moecast.traces.statistics.health import check_health
from moecast.traces.statistics.locality import CACHE_RATIOS, WINDOW_LENGTHS, Locality, locality
from moecast.traces.statistics.parts import PartCounter, Positions
from moecast.traces.statistics.rows import RowScanner
from moecast.traces.statistics.sample import SAMPLE_CHOICES, TokenSampler
from moecast.traces.statistics.stability import Stability, stability
from moecast.traces.statistics.summary import Counts, Fractions, TraceStats, mean_distinct, mean_known
from moecast.traces.statistics.tables import contiguous_ranks_LE
from moecast.traces.trace import RoutingTrace


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TraceProfile:
    """What is in a trace.

    `stats`, `fan_out_domains_LF`, `positions`, `drift` and the row checks of `health` are of all
    tokens; `locality`, `dependence`, `stability` and the sequence checks of `health` of
    `sample_tokens` tokens, whole pieces of sequences.

    Parameters
    ----------
    meta
        L, E, K and provenance.
    n_ranks, domain_size
        The ranks that hold the experts, and how many of them, in order, make a domain.
    stats
        Load, co-activation, transition; balance, fan-out and crossings of the placement.
    fan_out_domains_LF
        Tokens by number of distinct domains that hold their choices.
    token_sparsity_L
        TLS: mean part of the experts that a token does not choose (BlockFFN, arXiv 2507.08771,
        section 2.1); nan for a layer without any choice.
    coactivation, affinity
        What the two tables say.
    locality, dependence, positions, drift, stability
        Each defined in its class. `stability` is None with fewer than 8 sequences.
    health
        What would mislead, warnings first.
    sample_tokens, sample_share
        Tokens in the sample, and the part of all pieces that was drawn.
    """

    meta: TraceMeta
    n_ranks: int
    domain_size: int
    stats: TraceStats
    fan_out_domains_LF: Counts
    token_sparsity_L: Fractions
    coactivation: Coactivation
    affinity: Affinity
    locality: Locality
    dependence: Dependence
    positions: Positions
    drift: Drift
    stability: Stability | None
    health: tuple[Finding, ...]
    sample_tokens: int
    sample_share: float

    @property
    def token_sparsity(self) -> float:
        """Mean of the token-level sparsity of the layers with any choice; nan if there are none."""
        return mean_known(self.token_sparsity_L)

    @property
    def fan_out_domains(self) -> float:
        """Mean over tokens and layers with any choice of the distinct domains that hold them; nan if there are none."""
        return mean_distinct(self.fan_out_domains_LF)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values, nan as null; the L·E·E tables are left out."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        stats = facts.pop("stats")
        facts["load_LE"] = stats.load_LE
        value = plain(facts)
        assert isinstance(value, dict)
        return value


def profile_trace(
    source: Source,
    *,
    rank_of_expert_LE: npt.ArrayLike | None = None,
    n_ranks: int | None = None,
    domain_size: int | None = None,
    lengths: Sequence[int] = WINDOW_LENGTHS,
    cache_ratios: Sequence[float] = CACHE_RATIOS,
    sample_choices: int = SAMPLE_CHOICES,
    seed: int = 0,
) -> TraceProfile:
    """Find out what is in a trace, or in batches of one, in one pass and bounded memory.

    Parameters
    ----------
    rank_of_expert_LE, n_ranks
        A placement without replicas; by default experts in order on `n_ranks` ranks, 8 or E where
        that is less.
    domain_size
        Ranks of a domain, consecutive; by default 8, or all ranks where there are fewer.
    lengths, cache_ratios
        As in `locality`.
    sample_choices
        Most choices kept in memory for the statistics that need the order within a sequence.
    seed
        Draws the sample and the deals; the same seed gives the same profile for any batches and
        shards.

    Raises
    ------
    ValueError
        No batches or no tokens, batches of different L, E or K, or ranks that do not fit.
    """
    profiler = None
    for batch in (source,) if isinstance(source, RoutingTrace) else source:
        profiler = profiler or _Profiler(batch.meta, rank_of_expert_LE, n_ranks, domain_size, sample_choices, seed)
        profiler.add(batch)
    if profiler is None or not profiler.counter.tokens:
        raise ValueError("no tokens to profile")
    return profiler.profile(lengths, cache_ratios)


class _Profiler:
    """The counters that look at each batch in turn."""

    def __init__(
        self,
        meta: TraceMeta,
        rank_of_expert_LE: npt.ArrayLike | None,
        n_ranks: int | None,
        domain_size: int | None,
        sample_choices: int,
        seed: int,
    ) -> None:
        if rank_of_expert_LE is None:
            n_ranks = min(8, meta.experts) if n_ranks is None else n_ranks
            rank_of_expert_LE = contiguous_ranks_LE(meta, n_ranks)
        rank_LE = np.asarray(rank_of_expert_LE)
        self.meta, self.seed = meta, seed
        self.n_ranks = int(rank_LE.max()) + 1 if n_ranks is None else n_ranks
        self.domain_size = min(8, self.n_ranks) if domain_size is None else domain_size
        if self.domain_size < 1:
            raise ValueError(f"domain_size = {domain_size}: must be at least 1")
        self.counter = TraceCounter(
            meta, rank_of_expert_LE=rank_LE, n_ranks=self.n_ranks, coactivation=True, transition=True
        )
        # one domain needs no counting: a token with any choice is sent to it
        several = self.domain_size < self.n_ranks
        self.domains = TraceCounter(meta, rank_of_expert_LE=rank_LE // self.domain_size) if several else None
        self.parts = PartCounter(meta)
        self.rows = RowScanner(meta)
        self.sampler = TokenSampler(meta, most_choices=sample_choices, seed=seed)

    def add(self, batch: RoutingTrace) -> None:
        for part in (self.counter, self.domains, self.parts, self.rows, self.sampler):
            if part is not None:
                part.add(batch)

    def profile(self, lengths: Sequence[int], cache_ratios: Sequence[float]) -> TraceProfile:
        meta, stats, parts, sample = self.meta, self.counter.stats(), self.parts.parts(), self.sampler.sample()
        assert stats.coactivation_LEE is not None
        assert stats.transition_LEE is not None
        fan_out_LF = stats.fan_out_LF if self.domains is None else self.domains.stats().fan_out_LF
        assert fan_out_LF is not None
        plan_ranks = min(self.n_ranks, meta.experts)
        return TraceProfile(
            meta=meta,
            n_ranks=self.n_ranks,
            domain_size=self.domain_size,
            stats=stats,
            fan_out_domains_LF=fan_out_LF if self.domains is not None else _any_or_none_LF(fan_out_LF),
            token_sparsity_L=_token_sparsity_L(stats),
            coactivation=coactivation(stats.coactivation_LEE),
            affinity=affinity(stats.transition_LEE, choices=meta.choices),
            locality=locality(sample, lengths=lengths, cache_ratios=cache_ratios),
            dependence=dependence(sample, seed=self.seed),
            positions=self.parts.positions(),
            drift=drift(parts, n_ranks=plan_ranks),
            stability=stability(sample, n_ranks=plan_ranks, seed=self.seed),
            health=check_health(meta, self.rows.facts(), stats.load_LE, parts.topics, parts.tokens_C, sample),
            sample_tokens=sample.tokens,
            sample_share=sample.share,
        )


def _token_sparsity_L(stats: TraceStats) -> Fractions:
    chosen_L = stats.load_LE.sum(axis=1)
    return np.where(chosen_L > 0, 1 - chosen_L / (stats.tokens * stats.load_LE.shape[1]), math.nan)


def _any_or_none_LF(fan_out_LF: Counts) -> Counts:
    """Tokens with no rank, and with one domain, where all ranks make one."""
    counts_LF = np.zeros_like(fan_out_LF)
    counts_LF[:, 0], counts_LF[:, 1] = fan_out_LF[:, 0], fan_out_LF[:, 1:].sum(axis=1)
    return counts_LF


def plain(value: Any) -> Any:
    """A value as JSON knows it: dataclasses as objects, arrays as lists, nan as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
