"""FSMoE's partition of gradients: pieces that fit where the network between domains is idle in a backward pass.

A layer's backward pass leaves that network idle twice: while experts compute what came and before
it comes home, and while attention is differentiated behind it. Gradients that are there already are
cut to fill these gaps; what does not fit anywhere is reduced behind the pass. A piece pays its own
launch, so a gap that is too short for one stays empty.

On even work with t seconds per byte, gaps of g seconds each and s seconds of a launch, n gaps
behind the first layer hide n (g - s) / t bytes, where there are as many.

The paper also moves degrees of chunks and pieces about by a search (differential evolution), so
that pieces longer than their gap pay off in other places; here a piece is never longer than its
gap.

Source: FSMoE, arXiv 2501.10714 (adaptive gradient partitioning).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

LEAST_BYTES = 1 << 20
"""A smaller piece is not worth its launch."""

Kind = TypeVar("Kind", bound=Hashable)
Seconds = Callable[[Kind, float], float]
"""What a piece of so many bytes of a kind of gradients takes, launch included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Where the network is idle.

    Parameters
    ----------
    where
        What the caller calls it.
    seconds
        For how long.
    """

    where: Hashable
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition(Generic[Kind]):
    """Which bytes of each kind go into which gap, and which are left over."""

    pieces: Mapping[Hashable, Mapping[Kind, float]]
    left: Mapping[Kind, float]


def partition(layers: Iterable[tuple[Iterable[Gap], Mapping[Kind, float]]], seconds: Seconds[Kind]) -> Partition[Kind]:
    """Fill the gaps of a backward pass in their order, each with what layers before it gave.

    Parameters
    ----------
    layers
        In the order of the pass: a layer's gaps, and the bytes of gradients, by kind, that are
        there behind it.
    seconds
        See `Seconds`.
    """
    there: dict[Kind, float] = {}
    pieces: dict[Hashable, Mapping[Kind, float]] = {}
    for gaps, given in layers:
        for gap in gaps:
            taken = dict(_fill(gap.seconds, there, seconds))
            if taken:
                pieces[gap.where] = taken
                there = {kind: size - taken.get(kind, 0.0) for kind, size in there.items()}
        there = {kind: there.get(kind, 0.0) + given.get(kind, 0.0) for kind in {**there, **given}}
    return Partition(pieces=pieces, left={kind: size for kind, size in there.items() if size > 0})


def _fill(room_s: float, there: Mapping[Kind, float], seconds: Seconds[Kind]) -> Iterable[tuple[Kind, float]]:
    for kind, size in there.items():
        piece = _piece(room_s, kind, size, seconds)
        if piece >= LEAST_BYTES or (piece == size > 0):
            room_s -= seconds(kind, piece)
            yield kind, piece


def _piece(room_s: float, kind: Kind, size: float, seconds: Seconds[Kind]) -> float:
    """The most bytes that fit; times are straight lines of bytes."""
    if not size or room_s <= 0:
        return 0.0
    launch_s, whole_s = seconds(kind, 0.0), seconds(kind, size)
    if whole_s <= room_s:
        return size
    if launch_s >= room_s:
        return 0.0
    return float(int(size * (room_s - launch_s) / (whole_s - launch_s)))
