"""Max-min fair rates of flows that share links: compiled progressive filling.

All rates rise together until a link is full; its flows keep the rate they have, the others rise on. At the end every
flow has a full link on which no flow is faster (Bertsekas and Gallager, Data Networks, 1987, section 6.5.2). A flow
of rate r takes ``r · share`` of each of its links.

Axes: F flow, J link, X (flow, link) pair, A flow in transit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from moecast.sim.program import Float, Int, Int32

# A sum of shares that was counted down to less than this part of itself has lost too many digits.
CANCELLED = 1e-3


class Chains(NamedTuple):
    """For each link the pairs that are on it now, as a doubly linked chain: -1 ends it."""

    head_J: Int
    next_X: Int
    previous_X: Int
    flow_X: Int


class Filling(NamedTuple):
    """Scratch of one filling; `users_J` is all zeros between fillings."""

    users_J: Int  # flows on the link whose rates still rise
    weight_J: Float  # the sum of their shares
    exact_J: Float  # the same when it was last summed rather than counted down
    left_J: Float  # capacity that the settled flows leave
    level_J: Float  # the rate at which the link was last seen to fill
    queue_J: Int  # heap of links by level


def max_min_rates(offsets_F1: Int, link_X: Int32, share_X: Float, capacity_J: Float) -> Float:
    """Rates [F] at which these flows share the links, in the capacity's unit; infinite for a flow without links."""
    n = len(offsets_F1) - 1
    chains = new_chains(len(capacity_J), len(link_X))
    rate_F = np.empty(n)
    for f in range(n):
        link_flow(f, offsets_F1, link_X, chains)
    fill(np.arange(n), n, offsets_F1, link_X, share_X, capacity_J, chains, new_filling(len(capacity_J)), rate_F)
    return rate_F


def new_chains(n_links: int, n_pairs: int) -> Chains:
    """Empty links."""
    chain_X = (np.full(n_pairs, -1), np.full(n_pairs, -1), np.full(n_pairs, -1))
    return Chains(np.full(n_links, -1), *chain_X)


def new_filling(n_links: int) -> Filling:
    """Scratch for networks of `n_links` links."""
    a, b, c, d = np.zeros((4, n_links))
    return Filling(np.zeros(n_links, np.int64), a, b, c, d, np.zeros(n_links, np.int64))


@njit(cache=True, nogil=True)
def link_flow(f: int, offsets_F1: Int, link_X: Int32, chains: Chains) -> None:
    """Put a flow on its links."""
    for x in range(offsets_F1[f], offsets_F1[f + 1]):
        first = chains.head_J[link_X[x]]
        chains.flow_X[x] = f
        chains.next_X[x] = first
        chains.previous_X[x] = -1
        if first >= 0:
            chains.previous_X[first] = x
        chains.head_J[link_X[x]] = x


@njit(cache=True, nogil=True)
def unlink_flow(f: int, offsets_F1: Int, link_X: Int32, chains: Chains) -> None:
    """Take a flow off its links."""
    for x in range(offsets_F1[f], offsets_F1[f + 1]):
        before, after = chains.previous_X[x], chains.next_X[x]
        if before >= 0:
            chains.next_X[before] = after
        else:
            chains.head_J[link_X[x]] = after
        if after >= 0:
            chains.previous_X[after] = before


@njit(cache=True, nogil=True)
def fill(
    flow_A: Int, n: int, offsets_F1: Int, link_X: Int32, share_X: Float, capacity_J: Float, chains: Chains,
    filling: Filling, rate_F: Float,
) -> None:  # fmt: skip
    """Write the max-min fair rates of the first `n` flows of `flow_A`, which are exactly those in `chains`.

    A heap holds the links by the rate at which they would fill. That rate only rises as other links settle their
    flows at lower rates, so an entry that is out of date is too early: it is brought up to date when it comes first.
    """
    size = _open_links(flow_A, n, offsets_F1, link_X, share_X, capacity_J, filling, rate_F)
    rate = 0.0
    while size:
        j = filling.queue_J[0]
        if filling.users_J[j]:
            if filling.weight_J[j] < CANCELLED * filling.exact_J[j]:
                _sum_weight(j, share_X, chains, filling, rate_F)
            level = filling.left_J[j] / filling.weight_J[j]
            if level > filling.level_J[j]:
                filling.level_J[j] = level
                _sink(0, size, filling.queue_J, filling.level_J)
                continue
            rate = max(rate, level)  # a link that fills together with the last one may seem earlier by rounding
            _settle(j, rate, offsets_F1, link_X, share_X, chains, filling, rate_F)
        size -= 1
        filling.queue_J[0] = filling.queue_J[size]
        _sink(0, size, filling.queue_J, filling.level_J)


@njit(cache=True, nogil=True)
def _open_links(
    flow_A: Int, n: int, offsets_F1: Int, link_X: Int32, share_X: Float, capacity_J: Float, filling: Filling,
    rate_F: Float,
) -> int:  # fmt: skip
    size = 0
    for a in range(n):
        f = flow_A[a]
        rate_F[f] = np.inf
        for x in range(offsets_F1[f], offsets_F1[f + 1]):
            j = link_X[x]
            if filling.users_J[j] == 0:
                filling.weight_J[j] = 0.0
                filling.queue_J[size] = j
                size += 1
            filling.users_J[j] += 1
            filling.weight_J[j] += share_X[x]
    for i in range(size):
        j = filling.queue_J[i]
        filling.left_J[j], filling.exact_J[j] = capacity_J[j], filling.weight_J[j]
        filling.level_J[j] = capacity_J[j] / filling.weight_J[j]
    for i in range(size // 2 - 1, -1, -1):
        _sink(i, size, filling.queue_J, filling.level_J)
    return size


@njit(cache=True, nogil=True)
def _settle(
    j: int, rate: float, offsets_F1: Int, link_X: Int32, share_X: Float, chains: Chains, filling: Filling,
    rate_F: Float,
) -> None:  # fmt: skip
    pair = chains.head_J[j]
    while pair >= 0:
        f = chains.flow_X[pair]
        pair = chains.next_X[pair]
        if rate_F[f] < np.inf:
            continue
        rate_F[f] = rate
        for x in range(offsets_F1[f], offsets_F1[f + 1]):
            filling.users_J[link_X[x]] -= 1
            filling.weight_J[link_X[x]] -= share_X[x]
            filling.left_J[link_X[x]] -= share_X[x] * rate


@njit(cache=True, nogil=True)
def _sum_weight(j: int, share_X: Float, chains: Chains, filling: Filling, rate_F: Float) -> None:
    weight, pair = 0.0, chains.head_J[j]
    while pair >= 0:
        if rate_F[chains.flow_X[pair]] == np.inf:
            weight += share_X[pair]
        pair = chains.next_X[pair]
    filling.weight_J[j] = filling.exact_J[j] = weight


@njit(cache=True, nogil=True)
def _sink(i: int, size: int, queue_J: Int, level_J: Float) -> None:
    j = queue_J[i]
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and level_J[queue_J[child + 1]] < level_J[queue_J[child]]:
            child += 1
        if level_J[queue_J[child]] >= level_J[j]:
            break
        queue_J[i] = queue_J[child]
        i = child
    queue_J[i] = j
