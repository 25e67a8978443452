"""Which links a flow takes, and how much of it takes each.

Axes: F flow, J link, X (flow, link) pairs in the order of flows.

A flow takes the shortest paths (fewest links) from its source GPU to its destination GPU: over
NVLink alone inside a domain, over any links between domains. No path leads through a third GPU.
Where several are shortest, ECMP takes one of them by a hash and spraying divides the flow by what
they carry, evenly where all cables are alike.

The hash: three rounds of SplitMix64's mixing function over seed, source and destination (GPU ids,
64 bits each); its value modulo the number of shortest paths picks the path, counted in the order of
the links. All that one GPU sends to another takes the same path, as the packets of one connection
do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.topology.paths import Adjacency, Doors, Floats, Found, Ints, flow_hash, follow_all, follow_one, next_hops

# Entries that one block of destinations may take in each scratch array: 1 MiB of int64, so that
# they stay in the cache.
_BLOCK_ENTRIES = 1 << 17

# Pairs of small blocks that are joined: 48 MiB, more than what C libraries keep for themselves.
_JOINED_PAIRS = 1 << 22

# Flows whose pairs are put in place together.
_PUT_FLOWS = 1 << 15


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Routes:
    """The links of each of F flows, in CSR form.

    Parameters
    ----------
    offsets_F1
        int64 [F + 1]; flow f has the entries ``offsets_F1[f]:offsets_F1[f + 1]`` of the two arrays
        below.
    link_X
        int32 indices into the cluster's links, from source to destination.
    share_X
        float64 part of the flow's bytes on that link: 1 for one path, 1/n where n paths share the
        flow.
    latency_F
        float64 seconds until the first byte arrives, the mean over the paths of a sprayed flow.
    """

    offsets_F1: npt.NDArray[np.int64]
    link_X: npt.NDArray[np.int32]
    share_X: npt.NDArray[np.float64]
    latency_F: npt.NDArray[np.float64]

    @property
    def n_flows(self) -> int:
        """The number of flows."""
        return len(self.latency_F)

    @property
    def flow_X(self) -> npt.NDArray[np.int64]:
        """The flow of each entry."""
        return np.repeat(np.arange(self.n_flows), np.diff(self.offsets_F1))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Network:
    """What paths are found in: the NVLinks inside domains, and all links between them."""

    inside: Adjacency
    between: Adjacency
    inside_doors: Doors
    between_doors: Doors
    domain_of_gpu_G: npt.NDArray[np.int32]
    latency_J: Floats


def find_routes(
    network: Network, source_F: npt.ArrayLike, destination_F: npt.ArrayLike, *, spray: bool, seed: int
) -> Routes:
    """Find the links of each flow; a flow from a GPU to itself takes none.

    Parameters
    ----------
    network
        The cluster.
    source_F, destination_F
        GPU ids, one per flow.
    spray
        Divide each flow over all its shortest paths, by what they carry, instead of hashing it onto
        one.
    seed
        Of the hash; any integer.

    Raises
    ------
    ValueError, TypeError
        Arrays of different lengths, or an id that is no GPU.
    """
    source_F = _gpu_ids(source_F, network.between.n_gpus, "source_F")
    destination_F = _gpu_ids(destination_F, network.between.n_gpus, "destination_F")
    if source_F.shape != destination_F.shape:
        raise ValueError(f"source_F has {source_F.size} flows, destination_F has {destination_F.size}")
    same_F = network.domain_of_gpu_G[source_F] == network.domain_of_gpu_G[destination_F]
    found_of: list[Crossed] = []
    for whole, every, part_F in (
        (network.inside, network.inside_doors, same_F & (source_F != destination_F)),
        (network.between, network.between_doors, ~same_F),
    ):
        part = np.flatnonzero(part_F)
        gpus = np.union1d(source_F[part], destination_F[part])
        if not len(part):
            continue
        adjacency = whole.among(gpus)
        end = np.searchsorted(gpus, destination_F[part])
        door_G, doors = every.among(adjacency, gpus)
        for block, door_D, column_F in _blocks(door_G[end], len(adjacency.out_link)):
            block_F = part[block]
            hops = next_hops(adjacency, door_D, spray=spray)
            start_F = np.searchsorted(gpus, source_F[block_F])
            if spray:
                found = follow_all(hops, start_F, column_F)
            else:
                hash_F = flow_hash(seed, source_F[block_F], destination_F[block_F])
                found = follow_one(hops, start_F, column_F, hash_F)
            doors.enter(found, end[block])
            found_of.append(_crossed(block_F, found, network.latency_J))
            _join_last(found_of)
    return _as_routes(found_of, len(source_F))


def _blocks(door_F: Ints, n_links: int) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Cut flows by the doors they go to: their indices, the distinct doors, and each flow's place among those."""
    every_D, column = np.unique(door_F, return_inverse=True)
    flows_each = -(-len(door_F) // len(every_D))
    width = max(1, _BLOCK_ENTRIES // max(n_links, 16 * flows_each))
    order = np.argsort(column, kind="stable")
    cuts = np.searchsorted(column[order], np.arange(0, len(every_D) + width, width))
    for number, (start, end) in enumerate(pairwise(cuts)):
        block = np.sort(order[start:end])
        yield block, every_D[number * width : (number + 1) * width], column[block] - number * width


class Crossed(NamedTuple):
    """What some flows cross: the flows, how many links each does, and one flow after another which and how much of it.

    Numbers that are kept for every (flow, link) pair until all are found take no more bytes than
    they need.
    """

    flow_B: Ints
    latency_B: Floats
    links_B: Ints
    link_X: npt.NDArray[np.int32]
    share_X: Floats


def _crossed(flow_B: Ints, found: Found, latency_J: Floats) -> Crossed:
    """Join the hops of each flow of a block, sorted block by block so that all of it stays in the cache."""
    place_X = np.concatenate(found.flow)
    order = np.argsort(place_X, kind="stable")
    link_X, share_X = np.concatenate(found.link).astype(np.int32)[order], np.concatenate(found.share)[order]
    return Crossed(
        flow_B,
        np.bincount(place_X[order], weights=share_X * latency_J[link_X], minlength=len(flow_B)).astype(np.float64),
        np.bincount(place_X, minlength=len(flow_B)),
        link_X,
        share_X,
    )


def _join_last(found_of: list[Crossed]) -> None:
    """Join the blocks at the end once they are many: large arrays go back to the system when they are let go."""
    small = next((n for n, found in enumerate(reversed(found_of)) if len(found.link_X) >= _JOINED_PAIRS), len(found_of))
    if small and sum(len(found.link_X) for found in found_of[-small:]) >= _JOINED_PAIRS:
        parts = [found_of.pop() for _ in range(small)][::-1]
        found_of.append(Crossed(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))))


def _as_routes(found_of: list[Crossed], n_flows: int) -> Routes:
    """Put the links of every flow where they belong, and then their shares; what has been put is let go."""
    offsets_F1, latency_F = np.zeros(n_flows + 1, np.int64), np.zeros(n_flows)
    for found in found_of:
        offsets_F1[found.flow_B + 1], latency_F[found.flow_B] = found.links_B, found.latency_B
    offsets_F1 = np.cumsum(offsets_F1)
    blocks = [(found.flow_B, found.links_B) for found in found_of]
    links, shares = [found.link_X for found in found_of], [found.share_X for found in found_of]
    found_of.clear()
    link_X, share_X = np.empty(offsets_F1[-1], np.int32), np.empty(offsets_F1[-1])
    _put(links, blocks, offsets_F1, link_X)
    _put(shares, blocks, offsets_F1, share_X)
    return Routes(offsets_F1=offsets_F1, link_X=link_X, share_X=share_X, latency_F=latency_F)


def _put(
    values_of: list[npt.NDArray[Any]], blocks: list[tuple[Ints, Ints]], offsets_F1: Ints, values_X: npt.NDArray[Any]
) -> None:
    for flow_B, links_B in reversed(blocks):
        values, ends_B = values_of.pop(), np.cumsum(links_B)
        for first in range(0, len(flow_B), _PUT_FLOWS):
            some = slice(first, first + _PUT_FLOWS)
            begin = ends_B[first] - links_B[first]
            shift_B = offsets_F1[flow_B[some]] - (ends_B[some] - links_B[some] - begin)
            put_X = np.repeat(shift_B, links_B[some])
            put_X += np.arange(len(put_X))
            values_X[put_X] = values[begin : begin + len(put_X)]


def _gpu_ids(ids: npt.ArrayLike, n_gpus: int, name: str) -> Ints:
    one = isinstance(ids, (int, np.integer)) and not isinstance(ids, bool)
    return whole_numbers(name, [ids] if one else ids, most=n_gpus - 1)
