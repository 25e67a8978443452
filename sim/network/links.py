"""Links that carry the same flows: of those that stand in a row, only the narrowest can ever be full first.

Axes: J link, F flow, X (flow, link) pair.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner
from moecast.sim.network.flows import filled
from moecast.sim.program import Float, Int, Int32, StepProgram

Bits = npt.NDArray[np.uint64]

Paths = tuple[Int, Int32, Float]
"""The links of flows as a CSR: `offsets_F1`, `link_X` and `share_X`."""


def parallel_links(program: StepProgram) -> Int | None:
    """For each link [J] the narrowest of those that carry the same flows of a program; see `narrowest_links`.

    None where the others are not in the flows' paths any more.
    """
    if program.narrowest_J is not None:
        return None
    exchanges = (filled(exchange, program) for exchange in program.exchanges)
    return narrowest_links((flows.paths for flows in exchanges), program.capacity_J)


def narrowest_links(paths: Iterable[Paths], capacity_J: Float) -> Int:
    """For each link [J] the narrowest of those that carry the same flows with the same shares.

    A GPU's PCIe and its NIC, the n uplinks over which a leaf sprays: all but one may be left out of the sharing, and
    every rate stays what it was.

    Links are told apart by two 64-bit sums over the flows that cross them, each of mixed bits of flow and share. Of a
    million different links some two have equal sums with a chance of 1e-27.
    """
    sums_J2 = np.zeros((len(capacity_J), 2), np.uint64)
    flows = 0
    for offsets_F1, link_X, share_X in paths:
        _sum_crossings(offsets_F1, link_X, np.ascontiguousarray(share_X, np.float64).view(np.uint64), flows, sums_J2)
        flows += len(offsets_F1) - 1
    narrowest_first = np.lexsort((np.arange(len(sums_J2)), capacity_J, sums_J2[:, 0], sums_J2[:, 1]))
    sorted_J2 = sums_J2[narrowest_first]
    begins_J = np.concatenate([[True], (sorted_J2[1:] != sorted_J2[:-1]).any(1)]) if len(sums_J2) else np.zeros(0, bool)
    bottleneck_J = np.empty(len(sums_J2), np.int64)
    bottleneck_J[narrowest_first] = narrowest_first[np.flatnonzero(begins_J)[np.cumsum(begins_J) - 1]]
    return bottleneck_J


def kept_pairs(paths: Paths, bottleneck_J: Int | None) -> Paths:
    """Leave out of paths the links that are not their own bottleneck; None: all are."""
    if bottleneck_J is None:
        return paths
    kept: Paths = _kept(*paths, bottleneck_J)
    return kept


@entry
def paces(offsets_F1: Int, link_X: Int32, share_X: Float, capacity_J: Float) -> Float:
    """Seconds a byte of each flow [F] that has its links to itself; 0 without any."""
    pace_F = np.zeros(len(offsets_F1) - 1)
    for f in range(len(pace_F)):
        for x in range(offsets_F1[f], offsets_F1[f + 1]):
            pace_F[f] = max(pace_F[f], share_X[x] / capacity_J[link_X[x]])
    return pace_F


@entry
def _kept(offsets_F1: Int, link_X: Int32, share_X: Float, bottleneck_J: Int) -> Paths:
    kept_F1, kept_link_X, kept_share_X = np.empty_like(offsets_F1), np.empty_like(link_X), np.empty_like(share_X)
    kept = 0
    for f in range(len(offsets_F1) - 1):
        kept_F1[f] = kept
        for x in range(offsets_F1[f], offsets_F1[f + 1]):
            if bottleneck_J[link_X[x]] == link_X[x]:
                kept_link_X[kept], kept_share_X[kept] = link_X[x], share_X[x]
                kept += 1
    kept_F1[-1] = kept
    return kept_F1, kept_link_X[:kept], kept_share_X[:kept]


@entry
def _sum_crossings(offsets_F1: Int, link_X: Int32, share_X: Bits, first: int, sums_J2: Bits) -> None:
    """Add what tells flows, counted from `first`, and their shares apart to the sums of the links that they cross."""
    for f in range(len(offsets_F1) - 1):
        flow = _mixed(np.uint64(first + f))
        for x in range(offsets_F1[f], offsets_F1[f + 1]):
            bits = _mixed(flow ^ share_X[x])
            # A sum, since it is the same in whatever order flows come; two, since one of 64 bits may meet by chance.
            sums_J2[link_X[x], 0] += bits
            sums_J2[link_X[x], 1] += _mixed(bits)


@inner
def _mixed(value: np.uint64) -> np.uint64:
    """SplitMix64's mixing (Steele, Lea and Flood, 2014)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
