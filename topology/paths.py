"""Shortest paths for many flows at once, level by level, in numpy (compiling would cost more than it saves).

Axes: F flow, J link, V node of the graph (GPUs first, in the order of their ids), D distinct
destination.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moecast.topology.nodes import Link, Node

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Adjacency:
    """The graph as index arrays; node v is left by the links ``out_link[out_start[v]:out_start[v + 1]]``."""

    n_gpus: int
    out_start: Ints
    out_link: Ints
    link_source_J: Ints
    link_destination_J: Ints
    capacity_J: Floats
    between_switches_J: npt.NDArray[np.bool_]

    @property
    def n_nodes(self) -> int:
        """GPUs, NICs and switches."""
        return len(self.out_start) - 1

    @classmethod
    def of(cls, nodes: Sequence[Node], links: Sequence[Link], *, kinds: frozenset[str] | None = None) -> Adjacency:
        """Index the links of a checked cluster, or those of some kinds only; GPUs stand first among the nodes."""
        place = {node.name: index for index, node in enumerate(nodes)}
        source_J = np.array([place[link.source] for link in links], dtype=np.int64)
        destination_J = np.array([place[link.destination] for link in links], dtype=np.int64)
        switch_V = np.array([node.kind not in ("gpu", "nic") for node in nodes], dtype=bool)
        kept = np.array([index for index, link in enumerate(links) if kinds is None or link.kind in kinds], np.int64)
        degree_V = np.bincount(source_J[kept], minlength=len(place))
        return cls(
            n_gpus=sum(node.kind == "gpu" for node in nodes),
            out_start=np.concatenate([[0], np.cumsum(degree_V)]),
            out_link=kept[np.argsort(source_J[kept], kind="stable")],
            link_source_J=source_J,
            link_destination_J=destination_J,
            capacity_J=np.array([link.capacity_Bps for link in links], dtype=np.float64),
            between_switches_J=switch_V[source_J] & switch_V[destination_J],
        )

    def among(self, gpus: Ints) -> Adjacency:
        """Leave out what no shortest path between some GPUs (their ids, ascending) takes.

        That is all other GPUs, which pass nothing on, and then all nodes with one neighbour, which
        a path could only leave the way it came. GPUs and nodes are numbered anew in their order;
        links keep their numbers and order.
        """
        kept_V = np.arange(self.n_nodes) >= self.n_gpus
        kept_V[gpus] = True
        out_link = self.out_link
        dropped = True
        while dropped:
            source, after = self.link_source_J[out_link], self.link_destination_J[out_link]
            inside = kept_V[source] & kept_V[after]
            out_link, source, after = out_link[inside], source[inside], after[inside]
            least_V, most_V = np.full(self.n_nodes, self.n_nodes), np.full(self.n_nodes, -1)
            for ends, others in ((source, after), (after, source)):
                np.minimum.at(least_V, ends, others)
                np.maximum.at(most_V, ends, others)
            dead_V = kept_V & (least_V >= most_V)
            dead_V[gpus] = False
            dropped = bool(dead_V.any())
            kept_V &= ~dead_V
        place_V = np.cumsum(kept_V) - 1
        degree_V = np.bincount(place_V[source], minlength=np.count_nonzero(kept_V))
        return replace(
            self,
            n_gpus=len(gpus),
            out_start=np.concatenate([[0], np.cumsum(degree_V)]),
            out_link=out_link,
            link_source_J=place_V[self.link_source_J],
            link_destination_J=place_V[self.link_destination_J],
        )

    def doors(self) -> Doors:
        """Find where all ways to each GPU come together: back from it while one link leads there, not between switches.

        Behind a link between switches how sprayed bytes divide is another matter (see `next_hops`).
        """
        source, after = self.link_source_J[self.out_link], self.link_destination_J[self.out_link]
        place = np.arange(len(after))
        links_V = np.bincount(after, minlength=self.n_nodes)
        places_V = np.bincount(after, place, self.n_nodes).astype(np.int64)  # of one link that is the link
        pair_J = source * self.n_nodes + after
        order = np.argsort(pair_J, kind="stable")
        before = np.concatenate([[0], np.cumsum(order)])
        door_G, crossed, gpu = np.arange(self.n_gpus), [], np.arange(self.n_gpus)
        came_G = door_G.copy()
        while len(gpu):
            at = door_G[gpu]
            # What a GPU itself sends there is no way to it.
            first, last = (np.searchsorted(pair_J[order], gpu * self.n_nodes + at, side) for side in ("left", "right"))
            one = np.flatnonzero(links_V[at] - (last - first) == 1)
            link = places_V[at[one]] - (before[last[one]] - before[first[one]])
            taken = (source[link] >= self.n_gpus) & ~self.between_switches_J[self.out_link[link]]
            taken &= source[link] != came_G[gpu[one]]  # back: nobody else is there
            gpu, link = gpu[one[taken]], link[taken]
            came_G[gpu], door_G[gpu] = door_G[gpu], source[link]
            link_G = np.full(self.n_gpus, -1)
            link_G[gpu] = self.out_link[link]
            crossed.append(link_G)
        return Doors(link_HG=np.array(crossed[::-1]).reshape(len(crossed), self.n_gpus))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Doors:
    """The links to a GPU from the node through which every way to it leads, its door; -1 where there are fewer.

    GPUs behind one leaf switch share it, so that paths are found to a few doors and not to every GPU. They are found
    once for all GPUs: of some alone others might be found, and shares would differ by a rounding.
    """

    link_HG: Ints

    def among(self, adjacency: Adjacency, gpus: Ints) -> tuple[Ints, Doors]:
        """The doors of some GPUs as nodes of an adjacency among them, and the links from there."""
        link_HG = self.link_HG[:, gpus]
        door_G = np.arange(len(gpus))
        for link_G in link_HG[::-1]:  # the last to have its say is the link that leaves the door
            door_G = np.where(link_G >= 0, adjacency.link_source_J[link_G], door_G)
        return door_G, Doors(link_HG=link_HG)

    def enter(self, found: Found, destination_F: Ints) -> None:
        """Append the links from the doors to the flows' destinations."""
        for link_G in self.link_HG:
            flow = np.flatnonzero(link_G[destination_F] >= 0)
            if len(flow):
                found.add(flow, link_G[destination_F[flow]], np.ones(len(flow)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NextHops:
    """All shortest paths towards each of D destinations, by node.

    Node v on its way to destination d (as columns of `destination_D`) has the entries
    ``start[d * n_nodes + v]:start[d * n_nodes + v + 1]`` of `link`, `after` (the node the link
    leads to) and `ways` (the number of shortest paths from there; for spraying, the bytes per
    second that go on from v this way).
    """

    n_nodes: int
    destination_D: Ints
    start: Ints
    link: Ints
    after: Ints
    ways: Ints | Floats

    def leave(self, at: Ints, column: Ints) -> tuple[Ints, Ints]:
        """List the entries that lead from nodes `at` on: the index into `at`, ascending, and the entry."""
        key = column * self.n_nodes + at
        first, count = self.start[key], self.start[key + 1] - self.start[key]
        which = np.repeat(np.arange(len(at)), count)
        return which, np.repeat(first - np.cumsum(count) + count, count) + np.arange(len(which))


def next_hops(adjacency: Adjacency, destination_D: Ints, *, spray: bool) -> NextHops:
    """Find all shortest paths from every node to each destination; a GPU passes nothing on."""
    hops_DV, paths_DV = _count_paths(adjacency, destination_D)
    source_J = adjacency.link_source_J[adjacency.out_link]
    after_J = adjacency.link_destination_J[adjacency.out_link]
    closer_DJ = hops_DV[:, source_J] == hops_DV[:, after_J] + 1
    closer_DJ &= hops_DV[:, after_J] >= 0
    closer_DJ &= (after_J >= adjacency.n_gpus) | (after_J == destination_D[:, None])
    column, link = np.nonzero(closer_DJ)
    n_keys = hops_DV.size
    count = np.bincount(column * adjacency.n_nodes + source_J[link], minlength=n_keys)
    return NextHops(
        n_nodes=adjacency.n_nodes,
        destination_D=destination_D,
        start=np.concatenate([[0], np.cumsum(count)]),
        link=adjacency.out_link[link],
        after=after_J[link],
        ways=_carried(adjacency, hops_DV, closer_DJ)[column, link] if spray else paths_DV[column, after_J[link]],
    )


def _carried(adjacency: Adjacency, hops_DV: npt.NDArray[np.int16], closer_DJ: npt.NDArray[np.bool_]) -> Floats:
    """Bytes per second that go towards each destination by each link, in the order of `out_link`.

    No more than the link and the switches behind it carry, which is how adaptive routing settles:
    queues on a slow cable turn packets away from it. What all ways share, the cables of the GPUs
    and NICs, turns nothing away.
    """
    source_J = adjacency.link_source_J[adjacency.out_link]
    after_J = adjacency.link_destination_J[adjacency.out_link]
    capacity_J = adjacency.capacity_J[adjacency.out_link]
    turns_away_J = np.where(adjacency.between_switches_J[adjacency.out_link], capacity_J, np.inf)
    leaving = np.flatnonzero(np.diff(adjacency.out_start))
    onwards_DV = np.where(hops_DV == 0, np.inf, 0.0)
    for level in range(1, int(hops_DV.max(initial=0)) + 1):
        on_J = closer_DJ & (hops_DV[:, source_J] == level)
        branch_DJ = np.where(on_J, np.minimum(turns_away_J, onwards_DV[:, after_J]), 0.0)
        onwards_DV[:, leaving] += np.add.reduceat(branch_DJ, adjacency.out_start[leaving], axis=1)
    return np.minimum(capacity_J, onwards_DV[:, after_J])


def _count_paths(adjacency: Adjacency, destination_D: Ints) -> tuple[npt.NDArray[np.int16], Ints]:
    """Count the hops from every node (-1: no path) and the paths with that few hops."""
    shape = (len(destination_D), adjacency.n_nodes)
    hops_DV, reached_DV = np.full(shape, -1, np.int16), np.zeros(shape, np.int64)
    row = np.arange(len(destination_D))
    hops_DV[row, destination_D], reached_DV[row, destination_D] = 0, 1
    paths_DV, level = reached_DV.copy(), 0
    leaving = np.flatnonzero(np.diff(adjacency.out_start))
    after_J = adjacency.link_destination_J[adjacency.out_link]
    while reached_DV.any():
        level += 1
        found_DV = np.zeros(shape, np.int64)
        found_DV[:, leaving] = np.add.reduceat(reached_DV[:, after_J], adjacency.out_start[leaving], axis=1)
        found_DV[hops_DV >= 0] = 0
        hops_DV[found_DV > 0] = level
        paths_DV += found_DV
        found_DV[:, : adjacency.n_gpus] = 0
        reached_DV = found_DV
    return hops_DV, paths_DV


def follow_one(hops: NextHops, source_F: Ints, column_F: Ints, hash_F: npt.NDArray[np.uint64]) -> Found:
    """Walk each flow along the path that its hash picks: of n paths, number hash modulo n."""
    found = Found([], [], [])
    flow, at = np.flatnonzero(source_F != hops.destination_D[column_F]), source_F
    at, pick = at[flow], None
    while len(flow):
        which, entry = hops.leave(at, column_F[flow])
        ways = hops.ways[entry]
        end = np.cumsum(ways)
        total = np.bincount(which, weights=ways, minlength=len(flow)).astype(np.int64)
        if pick is None:
            pick = (hash_F[flow] % total.astype(np.uint64)).astype(np.int64)
        offset = (pick + np.cumsum(total) - total)[which] - (end - ways)
        taken = (offset >= 0) & (offset < ways)
        pick, at = offset[taken], hops.after[entry[taken]]
        found.add(flow, hops.link[entry[taken]], np.ones(len(flow)))
        going = at != hops.destination_D[column_F[flow]]
        flow, at, pick = flow[going], at[going], pick[going]
    return found


def follow_all(hops: NextHops, source_F: Ints, column_F: Ints) -> Found:
    """Walk each flow along all its shortest paths, divided by what they carry: evenly where cables are alike."""
    found = Found([], [], [])
    flow = np.flatnonzero(source_F != hops.destination_D[column_F])
    at, part = source_F[flow], np.ones(len(flow))
    while len(flow):
        which, entry = hops.leave(at, column_F[flow])
        ways, after, flow_of = hops.ways[entry], hops.after[entry], flow[which]
        share = part[which] * ways / np.bincount(which, weights=ways)[which]
        found.add(flow_of, hops.link[entry], share)
        going = after != hops.destination_D[column_F[flow_of]]
        flow, at, part = _merge(flow_of[going], after[going], share[going], hops.n_nodes)
    return found


def _merge(flow: Ints, at: Ints, share: Floats, n_nodes: int) -> tuple[Ints, Ints, Floats]:
    """Join the parts of a flow that have met at a node."""
    key = flow * n_nodes + at
    if np.all(key[1:] > key[:-1]):
        return flow, at, share
    key, where = np.unique(key, return_inverse=True)
    flow, at = np.divmod(key, n_nodes)
    return flow, at, np.bincount(where, weights=share, minlength=len(key)).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """(flow, link, share) entries, hop by hop."""

    flow: list[Ints]
    link: list[Ints]
    share: list[Floats]

    def add(self, flow: Ints, link: Ints, share: Floats) -> None:
        """Append one hop of some flows."""
        self.flow.append(flow)
        self.link.append(link)
        self.share.append(share)


def flow_hash(seed: int, source_F: Ints, destination_F: Ints) -> npt.NDArray[np.uint64]:
    """Hash flows to 64 bits: SplitMix64's mixing (Steele, Lea and Flood 2014) of seed, source and destination."""
    value = _mix64(np.full(len(source_F), seed % 2**64, np.uint64))
    value = _mix64(value ^ source_F.astype(np.uint64))
    return _mix64(value ^ destination_F.astype(np.uint64))


def _mix64(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
