"""Counting routing batch by batch, in one compiled pass over each.

Axes: T token, L MoE layer, E expert, K choice, G rank, F fan-out 0…K.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.arrays import index, whole_numbers
from moecast.threads import run_parts, thread_count
from moecast.traces.meta import MAX_RANKS, TraceMeta
from moecast.traces.statistics.counting import count_batch
from moecast.traces.statistics.summary import Counts, TraceStats, rank_load_LG
from moecast.traces.trace import RoutingTrace

Source = RoutingTrace | Iterable[RoutingTrace]

# A token adds at most 1 to an entry of a table.
_SPILL_TOKENS = 2**32 - 1
_MAX_TABLE_BYTES = 16 << 30
_MIN_PART = 1 << 20  # choices that are worth a thread


class TraceCounter:
    """Counts batch after batch; `stats()` may be asked at any time.

    Parameters
    ----------
    meta
        L, E and K of every batch.
    rank_of_expert_LE
        The rank that holds each expert, for the statistics of a placement without replicas.
    n_ranks
        Ranks there are, at most 65535; by default the highest in `rank_of_expert_LE` + 1.
    crossings
        With `rank_of_expert_LE`: count these too.
    coactivation, transition
        Count these tables too: L·E·E numbers each.
    threads
        Share each batch out to so many; each has tables of its own. By default `thread_count()`.

    Raises
    ------
    ValueError, TypeError
        `rank_of_expert_LE` is not [L, E] of ranks below `n_ranks`, or the tables are larger than 16
        GiB.
    """

    def __init__(
        self,
        meta: TraceMeta,
        *,
        rank_of_expert_LE: npt.ArrayLike | None = None,
        n_ranks: int | None = None,
        crossings: bool = True,
        coactivation: bool = False,
        transition: bool = False,
        threads: int | None = None,
    ) -> None:
        layers, experts, _ = meta.shape_LEK
        self.meta, self.tokens = meta, 0
        self._coactivation, self._transition, self._crossings = coactivation, transition, crossings
        self._threads = thread_count() if threads is None else threads
        self._ranks_LE, self._n_ranks = None, 0
        padded_LE = np.zeros((0, experts + 1), np.uint16)
        if rank_of_expert_LE is not None:
            self._ranks_LE, self._n_ranks = _checked_ranks(rank_of_expert_LE, (layers, experts), n_ranks)
            padded_LE = np.pad(self._ranks_LE.astype(np.uint16), ((0, 0), (0, 1)), constant_values=self._n_ranks)
        self._padded_LE = padded_LE
        pair_entries = (experts + 1) ** 2 * ((layers if coactivation else 0) + (layers - 1 if transition else 0))
        needed_bytes = (8 + 4 * self._threads) * ((experts + 1) * layers + pair_entries)
        if needed_bytes > _MAX_TABLE_BYTES:
            raise ValueError(
                f"the tables of {layers} × {experts} experts take {needed_bytes >> 30} GiB, more "
                f"than the {_MAX_TABLE_BYTES >> 30} there may be; leave out pairs of experts, as "
                "trace stats --quick does"
            )
        # Counted in 32 bits, which halves the cache they fill, and spilled into 64 before they
        # could overflow.
        self._total = self._new_tables(np.int64)
        self._recent: list[list[npt.NDArray[Any]]] = []  # of each thread
        self._recent_tokens = 0

    def _new_tables(self, dtype: type) -> list[npt.NDArray[Any]]:
        """Zeros of what `count_batch` fills in, in its order."""
        layers, experts, choices = self.meta.shape_LEK
        placed = self._ranks_LE is not None
        followed = layers - 1 if placed and self._crossings else 0
        return [
            np.zeros((layers, experts + 1), dtype),
            np.zeros((layers if self._coactivation else 0, experts + 1, experts + 1), dtype),
            np.zeros((layers - 1 if self._transition else 0, experts + 1, experts + 1), dtype),
            np.zeros((layers if placed else 0, choices + 1), np.int64),
            np.zeros(followed, np.int64),
            np.zeros(followed, np.int64),
        ]

    def add(self, trace: RoutingTrace) -> None:
        """Count the tokens of a batch.

        Raises
        ------
        ValueError
            The batch's L, E or K is not the counter's.
        """
        trace.check_shape(self.meta)
        if self._recent_tokens + trace.n_tokens > _SPILL_TOKENS:
            self._spill()
        tokens, choices = trace.n_tokens, trace.experts_TLK.size
        n_parts = max(1, min(self._threads, choices // _MIN_PART))
        while len(self._recent) < n_parts:
            self._recent.append(self._new_tables(np.uint32))
        run_parts(
            [
                partial(
                    count_batch,
                    trace.experts_TLK[tokens * part // n_parts : tokens * (part + 1) // n_parts],
                    self._padded_LE,
                    *tables,
                )
                for part, tables in enumerate(self._recent[:n_parts])
            ]
        )
        self._recent_tokens += tokens
        self.tokens += tokens

    def stats(self) -> TraceStats:
        """Return the counts of all batches so far."""
        self._spill()
        experts = self.meta.experts
        load_LE = self._total[0][:, :experts].copy()
        coactivation_LEE, transition_LEE = (table[:, :experts, :experts].copy() for table in self._total[1:3])
        placed: dict[str, Any] = {}
        if self._ranks_LE is not None:
            placed = {
                "rank_load_LG": rank_load_LG(load_LE, self._ranks_LE, self._n_ranks),
                "fan_out_LF": self._total[3].copy(),
            }
            if self._crossings:
                placed |= {"same_rank_L": self._total[4].copy(), "pairs_L": self._total[5].copy()}
        return TraceStats(
            tokens=self.tokens,
            load_LE=load_LE,
            coactivation_LEE=_mirrored(coactivation_LEE, load_LE) if self._coactivation else None,
            transition_LEE=transition_LEE if self._transition else None,
            **placed,
        )

    def _spill(self) -> None:
        for tables in self._recent:
            for total, recent in zip(self._total, tables, strict=True):
                np.add(total, recent, out=total)
                recent[...] = 0
        self._recent_tokens = 0


def count_trace(
    source: Source,
    *,
    rank_of_expert_LE: npt.ArrayLike | None = None,
    n_ranks: int | None = None,
    crossings: bool = True,
    coactivation: bool = False,
    transition: bool = False,
    threads: int | None = None,
) -> TraceCounter:
    """Count a trace, or batches of one; the parameters are those of `TraceCounter`.

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
            crossings=crossings,
            coactivation=coactivation,
            transition=transition,
            threads=threads,
        )
        counter.add(batch)
    if counter is None:
        raise ValueError("no batches to count")
    return counter


def _checked_ranks(
    ranks: npt.ArrayLike, shape_LE: tuple[int, int], given: int | None
) -> tuple[npt.NDArray[np.int32], int]:
    n_ranks = MAX_RANKS if given is None else index("n_ranks", given, least=1, most=MAX_RANKS)
    rank_LE = whole_numbers("rank_of_expert_LE", ranks, most=n_ranks - 1, shape=shape_LE, dtype=np.int32)
    return rank_LE, int(rank_LE.max()) + 1 if given is None else n_ranks


def _mirrored(upper_LEE: Counts, load_LE: Counts) -> Counts:
    whole_LEE = upper_LEE + upper_LEE.transpose(0, 2, 1)
    diagonal = np.arange(load_LE.shape[1])
    whole_LEE[:, diagonal, diagonal] = load_LE
    return whole_LEE
