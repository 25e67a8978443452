"""The compiled part of `routes`: shortest paths towards one destination at a time, then a walk per flow."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

# numba's arrays are untyped to mypy; routes.py holds the typed front.
Array = Any


@njit(cache=True)
def mix64(value: Any) -> Any:
    """Scramble 64 bits (SplitMix64's finaliser: Steele, Lea and Flood 2014)."""
    value = np.uint64(value) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True)
def flow_hash(seed: Any, source: Any, destination: Any) -> Any:
    """Hash a flow to 64 bits."""
    value = mix64(np.uint64(seed))
    value = mix64(value ^ np.uint64(source))
    return mix64(value ^ np.uint64(destination))


@njit(cache=True)
def count_paths(
    destination: int, n_gpus: int, in_start: Array, in_link: Array, link_source: Array, hops: Array, paths: Array
) -> None:
    """Fill the hops from every node to `destination` (-1: none) and the number of paths with that few hops."""
    hops[:] = -1
    paths[:] = 0
    queue = np.empty(len(hops), np.int32)
    queue[0] = destination
    hops[destination], paths[destination] = 0, 1
    head, tail = 0, 1
    while head < tail:
        node = queue[head]
        head += 1
        if node < n_gpus and node != destination:
            continue  # a GPU passes nothing on
        for at in range(in_start[node], in_start[node + 1]):
            before = link_source[in_link[at]]
            if hops[before] < 0:
                hops[before] = hops[node] + 1
                queue[tail] = before
                tail += 1
            if hops[before] == hops[node] + 1:
                paths[before] += paths[node]


@njit(cache=True)
def follow_one(
    source: int,
    destination: int,
    pick: Any,
    n_gpus: int,
    out_start: Array,
    out_link: Array,
    link_destination: Array,
    hops: Array,
    paths: Array,
    link: Array,
    share: Array,
) -> int:
    """Write the links of shortest path number `pick`; returns how many."""
    node, n_links = source, 0
    while node != destination:
        for at in range(out_start[node], out_start[node + 1]):
            after = link_destination[out_link[at]]
            if hops[after] != hops[node] - 1 or (after < n_gpus and after != destination):
                continue
            if pick < paths[after]:
                link[n_links], share[n_links] = out_link[at], 1.0
                n_links += 1
                node = after
                break
            pick -= paths[after]
    return n_links


@njit(cache=True)
def follow_all(
    source: int,
    destination: int,
    n_gpus: int,
    out_start: Array,
    out_link: Array,
    link_destination: Array,
    hops: Array,
    paths: Array,
    arrived: Array,
    queue: Array,
    link: Array,
    share: Array,
) -> int:
    """Write every link on a shortest path with the part of those paths that use it; returns how many."""
    n_links, head, tail = 0, 0, 1
    queue[0], arrived[source] = source, 1.0
    while head < tail:
        node = queue[head]
        head += 1
        here, arrived[node] = arrived[node], 0.0
        if node == destination:
            continue
        for at in range(out_start[node], out_start[node + 1]):
            after = link_destination[out_link[at]]
            if hops[after] != hops[node] - 1 or (after < n_gpus and after != destination):
                continue
            if arrived[after] == 0.0:
                queue[tail] = after
                tail += 1
            part = here * (paths[after] / paths[node])
            arrived[after] += part
            link[n_links], share[n_links] = out_link[at], part
            n_links += 1
    return n_links


@njit(cache=True)
def routes_by_destination(
    source: Array,
    destination: Array,
    spray: bool,
    seed: Any,
    n_gpus: int,
    out_start: Array,
    out_link: Array,
    in_start: Array,
    in_link: Array,
    link_source: Array,
    link_destination: Array,
) -> Any:
    """Route flows that are sorted by destination: links per flow, then links and shares one after another."""
    n_flows, n_nodes, n_links = len(source), len(out_start) - 1, len(link_source)
    hops, paths = np.empty(n_nodes, np.int32), np.empty(n_nodes, np.int64)
    arrived, queue = np.zeros(n_nodes, np.float64), np.empty(n_nodes, np.int32)
    length = np.zeros(n_flows, np.int64)
    capacity = 8 * n_flows + n_links
    link, share = np.empty(capacity, np.int32), np.empty(capacity, np.float64)
    used, last = 0, -1
    for flow in range(n_flows):
        start, end = source[flow], destination[flow]
        if start == end:
            continue
        if end != last:
            count_paths(end, n_gpus, in_start, in_link, link_source, hops, paths)
            last = end
        if used + n_links > capacity:
            capacity = 2 * capacity
            more_link, more_share = np.empty(capacity, np.int32), np.empty(capacity, np.float64)
            more_link[:used], more_share[:used] = link[:used], share[:used]
            link, share = more_link, more_share
        if spray:
            wrote = follow_all(
                start, end, n_gpus, out_start, out_link, link_destination, hops, paths, arrived, queue,
                link[used:], share[used:],
            )  # fmt: skip
        else:
            pick = np.int64(flow_hash(seed, start, end) % np.uint64(paths[start]))
            wrote = follow_one(
                start, end, pick, n_gpus, out_start, out_link, link_destination, hops, paths, link[used:], share[used:]
            )
        length[flow] = wrote
        used += wrote
    return length, link[:used].copy(), share[:used].copy()
