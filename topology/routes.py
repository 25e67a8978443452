"""Paths through the cluster: which links a flow takes, and how much of it takes each.

Axes: F flow, J link, X (flow, link) pairs in the order of flows.

A flow takes the shortest paths (fewest links) from its source GPU to its destination GPU; no path leads through a
third GPU. Where several are shortest, ECMP takes one of them by a hash and spraying divides the flow evenly.

The hash: three rounds of SplitMix64's mixing function over seed, source and destination (GPU ids, 64 bits each);
its value modulo the number of shortest paths picks the path, counted in the order of the links. Every flow between
the same two GPUs collides with itself, as the packets of one connection do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moecast.topology.nodes import Link, Node


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Routes:
    """The links of each of F flows, in CSR form.

    Parameters
    ----------
    offsets_F1
        int64 [F + 1]; flow f has the entries ``offsets_F1[f]:offsets_F1[f + 1]`` of the two arrays below.
    link_X
        int32 indices into the cluster's links, from source to destination.
    share_X
        float64 part of the flow's bytes on that link: 1 for one path, 1/n where n paths share the flow.
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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Adjacency:
    """The graph as index arrays: links leaving and entering each node, GPUs first in the order of their ids."""

    n_gpus: int
    out_start: npt.NDArray[np.int64]
    out_link: npt.NDArray[np.int32]
    in_start: npt.NDArray[np.int64]
    in_link: npt.NDArray[np.int32]
    link_source_J: npt.NDArray[np.int32]
    link_destination_J: npt.NDArray[np.int32]
    latency_J: npt.NDArray[np.float64]

    @classmethod
    def of(cls, gpus: Sequence[Node], others: Sequence[Node], links: Sequence[Link]) -> Adjacency:
        """Index the links of a checked cluster."""
        position = {node.name: index for index, node in enumerate([*gpus, *others])}
        source_J = np.array([position[link.source] for link in links], dtype=np.int32)
        destination_J = np.array([position[link.destination] for link in links], dtype=np.int32)
        out_start, out_link = _group(source_J, len(position))
        in_start, in_link = _group(destination_J, len(position))
        return cls(
            n_gpus=len(gpus),
            out_start=out_start,
            out_link=out_link,
            in_start=in_start,
            in_link=in_link,
            link_source_J=source_J,
            link_destination_J=destination_J,
            latency_J=np.array([link.latency_s for link in links], dtype=np.float64),
        )


def find_routes(
    adjacency: Adjacency, source_F: npt.ArrayLike, destination_F: npt.ArrayLike, *, spray: bool, seed: int
) -> Routes:
    """Find the links of each flow; a flow from a GPU to itself takes none.

    Parameters
    ----------
    source_F, destination_F
        GPU ids, one per flow.
    spray
        Divide each flow over all its shortest paths instead of hashing it onto one.
    seed
        Of the hash; any integer.

    Raises
    ------
    ValueError
        Arrays of different lengths, or an id that is no GPU.
    """
    from moecast.topology import _paths  # numba: half a second that only those who route pay

    source = _gpu_ids(source_F, adjacency.n_gpus, "source_F")
    destination = _gpu_ids(destination_F, adjacency.n_gpus, "destination_F")
    if source.shape != destination.shape:
        raise ValueError(f"source_F has {source.size} flows, destination_F has {destination.size}")
    by_destination = np.argsort(destination, kind="stable")
    length, link, share = _paths.routes_by_destination(
        source[by_destination],
        destination[by_destination],
        spray,
        np.uint64(seed % 2**64),
        adjacency.n_gpus,
        adjacency.out_start,
        adjacency.out_link,
        adjacency.in_start,
        adjacency.in_link,
        adjacency.link_source_J,
        adjacency.link_destination_J,
    )
    return _in_flow_order(by_destination, length, link, share, adjacency.latency_J)


def _in_flow_order(
    order: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    link: npt.NDArray[np.int32],
    share: npt.NDArray[np.float64],
    latency_J: npt.NDArray[np.float64],
) -> Routes:
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    starts = np.concatenate([[0], np.cumsum(length)])[:-1][place]
    length_F = length[place]
    offsets_F1 = np.concatenate([[0], np.cumsum(length_F)]).astype(np.int64)
    take = np.repeat(starts - offsets_F1[:-1], length_F) + np.arange(offsets_F1[-1])
    link_X, share_X = link[take], share[take]
    flow_X = np.repeat(np.arange(len(order)), length_F)
    latency_F = np.bincount(flow_X, weights=share_X * latency_J[link_X], minlength=len(order))
    return Routes(offsets_F1=offsets_F1, link_X=link_X, share_X=share_X, latency_F=latency_F.astype(np.float64))


def _gpu_ids(ids: npt.ArrayLike, n_gpus: int, name: str) -> npt.NDArray[np.int64]:
    array = np.atleast_1d(np.asarray(ids, dtype=np.int64))
    if array.ndim != 1:
        raise ValueError(f"{name} must have one axis, got shape {array.shape}")
    if array.size and not (array.min() >= 0 and array.max() < n_gpus):
        raise ValueError(f"{name} holds a GPU id outside 0..{n_gpus - 1}")
    return array


def _group(node_J: npt.NDArray[np.int32], n_nodes: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    start = np.concatenate([[0], np.cumsum(np.bincount(node_J, minlength=n_nodes))]).astype(np.int64)
    return start, np.argsort(node_J, kind="stable").astype(np.int32)
