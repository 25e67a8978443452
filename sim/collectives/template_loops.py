"""Compiled loops over the flows of a template: their sizes in one exchange, and the flows that there are.

Axes: F flow, X (flow, link) pair, C count.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


def on_wire(offsets_F1: Int, link_X: Int32, share_X: Float, wire_F: Float, n_links: int) -> Float:
    """The shares [X] of flows that put so many bytes on each of the first links for each byte of data."""
    shares: Float = _on_wire(offsets_F1, link_X, share_X, wire_F, n_links)
    return shares


# Loops, not array operations: the pairs of wide exchanges are millions, and so would temporary arrays be.
@entry
def _on_wire(offsets_F1, link_X, share_X, wire_F, n_links):  # type: ignore[no-untyped-def]
    share = share_X.copy()
    for f in range(len(wire_F)):
        for x in range(offsets_F1[f], offsets_F1[f + 1]):
            if link_X[x] < n_links:
                share[x] *= wire_F[f]
    return share


@entry
def fill_flows(  # type: ignore[no-untyped-def]
    count_F,
    counts_C,
    bytes_F,
    chunk_bytes,
    offsets_F1,
    link_X,
    share_X,
    latency_F,
    pace_F,
    parent_offsets_F1,
    parent_R,
):
    """The flows that there are, their links and parents as CSRs, and how relays wait: delays and tails."""
    n, links, parents = 0, 0, 0
    # Counted first, so that every array is made once and as large as it must be.
    new_of_old = np.full(len(count_F), -1, np.int32)
    for f in range(len(count_F)):
        if count_F[f] < 0 or counts_C[count_F[f]] > 0:
            new_of_old[f] = n
            n += 1
            links += offsets_F1[f + 1] - offsets_F1[f]
            parents += parent_offsets_F1[f + 1] - parent_offsets_F1[f]
    chosen = np.empty(n, np.int64)
    offsets = np.zeros(n + 1, np.int64)
    parent_offsets = np.zeros(n + 1, np.int64)
    link, share = np.empty(links, np.int32), np.empty(links)
    parent = np.empty(parents, np.int32)
    delay_F, tail_F = np.zeros(n), np.zeros(n)
    at, at_parent = 0, 0
    for f in range(len(count_F)):
        new = new_of_old[f]
        if new < 0:
            continue
        chosen[new] = f
        for x in range(offsets_F1[f], offsets_F1[f + 1]):
            link[at] = link_X[x]
            share[at] = share_X[x]
            at += 1
        offsets[new + 1] = at
        for r in range(parent_offsets_F1[f], parent_offsets_F1[f + 1]):
            p = parent_R[r]
            # A parent without copies feeds nothing, and is not waited for.
            if new_of_old[p] < 0:
                continue
            parent[at_parent] = new_of_old[p]
            at_parent += 1
            # A relay passes on chunk by chunk: it begins with its parent's first and ends with its
            # own last.
            delay_F[new] = max(delay_F[new], min(chunk_bytes, bytes_F[p]) * pace_F[p] + latency_F[p])
        parent_offsets[new + 1] = at_parent
        if at_parent > parent_offsets[new]:
            tail_F[new] = min(chunk_bytes, bytes_F[f]) * pace_F[f] + latency_F[f]
    return chosen, offsets, link, share, parent_offsets, parent[:at_parent].copy(), delay_F, tail_F


@entry
def size_flows(  # type: ignore[no-untyped-def]
    count_F,
    awaited_F,
    waiter_F,
    counts_C,
    copy_bytes,
    part_F,
    chunk_bytes,
    latency_F,
    pace_F,
    parent_offsets_F1,
    parent_R,
):
    """Bytes (-1: no such flow), waiters, delays and tails, as of `fill_flows`.

    Before them, whether every fed flow has a parent and, if none is fed, each its waiter.
    """
    n = len(count_F)
    bytes_F, waits_F = np.empty(n), np.full(n, -1, np.int32)
    for f in range(n):
        copies = counts_C[count_F[f]] if count_F[f] >= 0 else 0
        bytes_F[f] = copies * copy_bytes if copies > 0 or count_F[f] < 0 else -1.0
        if len(part_F) and bytes_F[f] > 0:
            bytes_F[f] *= part_F[f]
        if counts_C[awaited_F[f]] > 0:
            waits_F[f] = waiter_F[f]
        elif bytes_F[f] >= 0 and waiter_F[f] >= 0 and not len(parent_R):
            return False, bytes_F, waits_F, bytes_F, bytes_F
    if not len(parent_R):
        return True, bytes_F, waits_F, np.zeros(0), np.zeros(0)
    delay_F, tail_F = np.zeros(n), np.zeros(n)
    for f in range(n):
        fed = parent_offsets_F1[f] == parent_offsets_F1[f + 1] or bytes_F[f] < 0
        for r in range(parent_offsets_F1[f], parent_offsets_F1[f + 1]):
            p = parent_R[r]
            if bytes_F[p] >= 0:
                fed = True
                delay_F[f] = max(delay_F[f], min(chunk_bytes, bytes_F[p]) * pace_F[p] + latency_F[p])
                tail_F[f] = min(chunk_bytes, bytes_F[f]) * pace_F[f] + latency_F[f]
        if not fed:
            return False, bytes_F, waits_F, delay_F, tail_F
    return True, bytes_F, waits_F, delay_F, tail_F
