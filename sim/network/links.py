"""Links that carry the same flows: of those that stand in a row, only the narrowest can ever be full first.

Axes: J link, F flow, X (flow, link) pair.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from moecast.sim.compiled import entry
from moecast.sim.network.flows import filled
from moecast.sim.program import Float, Int, Int32, StepProgram

Paths = tuple[Int, Int32, Float]
"""The links of flows as a CSR: `offsets_F1`, `link_X` and `share_X`."""


def parallel_links(program: StepProgram) -> Int:
    """For each link [J] the narrowest of those that carry the same flows of a program; see `narrowest_links`."""
    if program.narrowest_J is not None:  # the others are not in the flows' paths any more
        return np.arange(len(program.capacity_J))
    exchanges = (filled(exchange, program) for exchange in program.exchanges)
    return narrowest_links(((f.offsets_F1, f.link_X, f.share_X) for f in exchanges), program.capacity_J)


def narrowest_links(paths: Iterable[Paths], capacity_J: Float) -> Int:
    """For each link [J] the narrowest of those that carry the same flows with the same shares.

    A GPU's PCIe and its NIC, the n uplinks over which a leaf sprays: all but one may be left out of the sharing, and
    every rate stays what it was.
    """
    class_J = np.zeros(len(capacity_J), np.int64)
    classes = 1
    for offsets_F1, link_X, share_X in paths:
        classes = _refine(offsets_F1, link_X, share_X, class_J, classes)
        class_J, classes = _renumbered(class_J)
    narrowest_first = np.lexsort((np.arange(len(class_J)), capacity_J, class_J))
    _, first, inverse = np.unique(class_J[narrowest_first], return_index=True, return_inverse=True)
    bottleneck_J = np.empty(len(class_J), np.int64)
    bottleneck_J[narrowest_first] = narrowest_first[first[inverse]]
    return bottleneck_J


@entry
def kept_pairs(offsets_F1: Int, link_X: Int32, share_X: Float, bottleneck_J: Int) -> tuple[Int, Int32, Float]:
    """Leave out of a CSR the pairs whose link is not its own bottleneck."""
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


def _renumbered(class_J: Int) -> tuple[Int, int]:
    names, class_J = np.unique(class_J, return_inverse=True)
    return class_J, len(names)


@entry
def _refine(offsets_F1: Int, link_X: Int32, share_X: Float, class_J: Int, classes: int) -> int:
    """Part the classes: links stay together while every flow that uses one uses the other with the same share."""
    most = classes + 2 * len(link_X)
    seen, another = np.full(most, -1), np.empty(most, np.int64)
    successor, share = np.empty(most, np.int64), np.empty(most)
    spare = classes + len(link_X)
    for f in range(len(offsets_F1) - 1):
        for x in range(offsets_F1[f], offsets_F1[f + 1]):
            j, entry = link_X[x], class_J[link_X[x]]
            # A flow may use links of one class with several shares: each share starts a class of its own.
            while seen[entry] == f and share[entry] != share_X[x] and another[entry] >= 0:
                entry = another[entry]
            if seen[entry] == f and share[entry] == share_X[x]:
                class_J[j] = successor[entry]
                continue
            if seen[entry] == f:  # the same class with another share
                another[entry], entry, spare = spare, spare, spare + 1
            seen[entry], another[entry], share[entry], successor[entry] = f, -1, share_X[x], classes
            class_J[j] = classes
            classes += 1
    return classes
