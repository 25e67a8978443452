"""Fitting a trace: a model that can make more routing like it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.errors import MoecastError
from moecast.traces.meta import PHASES, TraceMeta
from moecast.traces.synthesis.donors import Donors, donors_of
from moecast.traces.synthesis.sample import pieces_T, sample_trace
from moecast.traces.synthesis.sketch import neighbours_TR, sketches_TD
from moecast.traces.trace import RoutingTrace

LEAST_SEQUENCES = 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TraceModel:
    """What was learned from a trace: its tokens' paths, and which of them are alike.

    A synthesis (`synthesise`) recombines them, as two chromosomes do: tokens that choose alike
    trade places, each with the tokens after it, and choices at some layers.

    Parameters
    ----------
    meta
        Of the source.
    content_hash, tokens
        The source's hash and size.
    phase
        The only phase that was fitted; None: all.
    donors
        The tokens recombined; of long traces a sample of whole sequences.
    sketch_TD
        float32 [T, D], unit vectors: where tokens lie close together, they choose alike.
    neighbours_TR
        int32 [T, R], -1 where there is none; symmetric.

    Raises
    ------
    ValueError, TypeError
        Arrays that are not of the donors.
    """

    meta: TraceMeta
    content_hash: str
    tokens: int
    phase: str | None
    donors: Donors
    sketch_TD: npt.NDArray[np.float32]
    neighbours_TR: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        tokens = self.donors.n_tokens
        if self.donors.trace.meta.shape_LEK != self.meta.shape_LEK:
            raise ValueError(f"meta: L, E, K = {self.meta.shape_LEK}, the donors' {self.donors.trace.meta.shape_LEK}")
        neighbours_TR = whole_numbers(
            "neighbours_TR", self.neighbours_TR, least=-1, most=tokens - 1, shape=(tokens, None), dtype=np.int32
        )
        object.__setattr__(self, "neighbours_TR", neighbours_TR)
        if self.sketch_TD.ndim != 2 or len(self.sketch_TD) != tokens or self.sketch_TD.dtype != np.float32:
            found = f"{self.sketch_TD.dtype} {list(self.sketch_TD.shape)}"
            raise ValueError(f"sketch_TD: {found}, must be float32 [{tokens}, any]")


def fit_trace(
    source: RoutingTrace | Iterable[RoutingTrace],
    *,
    phase: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TraceModel:
    """Learn from a trace, or from batches of one, how its tokens choose.

    Takes seconds and some hundred MB: of more than 131,072 tokens it keeps that many, in whole
    sequences.

    Parameters
    ----------
    phase
        Fit only tokens of this phase.
    progress
        Called with (tokens whose neighbours are known, all of them).

    Raises
    ------
    MoecastError
        Fewer than eight sequences (of the phase), or a phase that does not exist.
    ValueError
        Batches of different L, E or K.
    """
    if phase is not None and phase not in PHASES:
        raise MoecastError(f"must be one of {', '.join(PHASES)}", field="phase", value=phase)
    sample = sample_trace((source,) if isinstance(source, RoutingTrace) else source, phase=phase)
    trace = sample.trace()
    sequences = 0 if trace is None else len(np.unique(pieces_T(trace)))
    if trace is None or sequences < LEAST_SEQUENCES:
        of_phase = f" of phase {phase}" if phase else ""
        raise MoecastError(
            f"a fit needs at least {LEAST_SEQUENCES} sequences{of_phase}, there are {sequences}", field="like"
        )
    donors = donors_of(trace)
    sketch_TD = sketches_TD(donors)
    return TraceModel(
        meta=trace.meta,
        content_hash=sample.content_hash,
        tokens=sample.seen_tokens,
        phase=phase,
        donors=donors,
        sketch_TD=sketch_TD,
        neighbours_TR=neighbours_TR(donors, sketch_TD, progress=progress),
    )
