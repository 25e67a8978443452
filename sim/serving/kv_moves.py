"""Keys and values on their way from where a prompt was computed to where it is answered.

Each GPU of the decode rank gets the keys that it holds, from the prefill rank's GPUs in even parts.
What is under way at one time shares the cluster's own links max-min fairly, as flows do in
`sim.network`, and nothing else does: what the pools' own iterations send is not beside it. A move
starts when the prompt is done, as a whole.

Axes: F flow, J link, X (flow, link) pair.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moecast.sim.network.maxmin import max_min_rates
from moecast.sim.serving.request import Request
from moecast.topology import Cluster

Float = npt.NDArray[np.float64]
Gpus = tuple[int, ...]

DONE, INSTANT_S = 1e-9, 1e-9
"""Less than this part of a flow's bytes, or what is sent in this time, is rounding."""


class Moves(Protocol):
    """Prompts' keys under way, in the state that they are in."""

    def start(self, request: Request, source: int, destination: int, now_s: float) -> None:
        """Send a prompt's keys from one pool's rank to another pool's."""
        ...

    def next_s(self) -> float:
        """When something arrives or stops sending next; never: infinity."""
        ...

    def take(self, now_s: float) -> list[tuple[Request, int]]:
        """Let time go on: the requests whose keys have arrived, and at which rank."""
        ...


@dataclass(slots=True, eq=False)
class _Move:
    request: Request
    destination: int
    sent_s: float
    links_F: list[npt.NDArray[np.int32]]
    shares_F: list[Float]
    bytes_F: Float
    left_F: Float
    latency_s: float
    rate_F: Float


class KvMoves:
    """Moves over a cluster's links.

    Parameters
    ----------
    sources, destinations
        GPUs of each attention-DP rank of the pool that computes prompts, and of the one that
        answers.
    token_bytes
        What a GPU of a rank that answers holds of each token of a prompt.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        sources: Sequence[Gpus],
        destinations: Sequence[Gpus],
        token_bytes: float,
    ) -> None:
        self._cluster, self._sources, self._destinations = cluster, sources, destinations
        self.token_bytes = token_bytes
        self._routes: dict[tuple[int, int], tuple[npt.NDArray[np.int32], Float, float]] = {}
        self._moves: list[_Move] = []
        self._arriving: list[tuple[float, int, _Move]] = []
        self._now_s, self._sent_s = 0.0, math.inf
        self.bytes_J = np.zeros(len(cluster.capacity_J))
        self.bytes = 0.0
        self.times_s: list[float] = []

    def busiest_s(self) -> float:
        """Seconds for which the busiest link had to send at its full rate."""
        return float((self.bytes_J / self._cluster.capacity_J).max(initial=0.0))

    def start(self, request: Request, source: int, destination: int, now_s: float) -> None:
        """Send a prompt's keys, evenly from the source's GPUs, to each of the destination's what it holds."""
        self._go_on(now_s)
        ours, theirs = self._sources[source], self._destinations[destination]
        flows = max(len(ours), len(theirs))
        each = self.token_bytes * request.prompt_tokens * len(theirs) / flows
        pairs = [(ours[at * len(ours) // flows], theirs[at * len(theirs) // flows]) for at in range(flows)]
        routes = [self._route(*pair) for pair in pairs]
        for links, shares, _ in routes:
            self.bytes_J[links] += shares * each
        self.bytes += each * flows
        self._moves.append(
            _Move(
                request=request,
                destination=destination,
                sent_s=now_s,
                links_F=[route[0] for route in routes],
                shares_F=[route[1] for route in routes],
                bytes_F=np.full(flows, each),
                left_F=np.full(flows, each),
                latency_s=max(route[2] for route in routes),
                rate_F=np.zeros(flows),
            )
        )
        self._share()

    def next_s(self) -> float:
        """When something arrives or stops sending next; never: infinity."""
        return min(self._sent_s, self._arriving[0][0] if self._arriving else math.inf)

    def take(self, now_s: float) -> list[tuple[Request, int]]:
        """Let time go on: the requests whose keys have arrived, and at which rank."""
        self._go_on(now_s)
        if self._sent_s <= now_s:
            self._share()
        arrived = []
        while self._arriving and self._arriving[0][0] <= now_s:
            _, _, move = heapq.heappop(self._arriving)
            self.times_s.append(now_s - move.sent_s)
            arrived.append((move.request, move.destination))
        return arrived

    def _route(self, source: int, destination: int) -> tuple[npt.NDArray[np.int32], Float, float]:
        key = (source, destination)
        if key not in self._routes:
            found = self._cluster.routes([source], [destination])
            self._routes[key] = found.link_X, found.share_X, float(found.latency_F[0])
        return self._routes[key]

    def _go_on(self, now_s: float) -> None:
        """Send at the present rates until now."""
        passed_s, self._now_s = now_s - self._now_s, now_s
        if passed_s <= 0:
            return
        for move in self._moves:
            move.left_F = move.left_F - move.rate_F * passed_s

    def _share(self) -> None:
        """Take out who has sent all, and share the links among the others."""
        going = []
        for move in self._moves:
            over_F = np.maximum(DONE * move.bytes_F, INSTANT_S * move.rate_F)
            move.left_F = np.where(move.left_F > over_F, move.left_F, 0.0)
            if move.left_F.any():
                going.append(move)
            else:
                heapq.heappush(self._arriving, (self._now_s + move.latency_s, move.request.id, move))
        self._moves = going
        self._sent_s = self._now_s + self._rate(going) if going else math.inf

    def _rate(self, moves: Sequence[_Move]) -> float:
        """Give each flow its fair rate; seconds until the first of them has sent all."""
        flows = [(move, at) for move in moves for at in np.flatnonzero(move.left_F).tolist()]
        links = [move.links_F[at] for move, at in flows]
        offsets_F1 = np.concatenate([[0], np.cumsum([len(link) for link in links])])
        share_X = np.concatenate([move.shares_F[at] for move, at in flows])
        rate_F = max_min_rates(offsets_F1, np.concatenate(links), share_X, self._cluster.capacity_J)
        for move in moves:
            move.rate_F = np.zeros(len(move.left_F))
        for (move, at), rate in zip(flows, rate_F.tolist(), strict=True):
            move.rate_F[at] = rate
        left_F = np.array([move.left_F[at] for move, at in flows])
        return float((left_F / rate_F).min())
