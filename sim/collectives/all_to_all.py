"""An even all-to-all by itself: what a cluster's links give, without a model or routing.

This is what `alltoall_perf` of nccl-tests runs, and what is laid beside its output. It has a fixed cost (the launch and
a barrier, fitted inside one domain), latency and the links' rates; how far NCCL stays below the links between nodes
(channels, protocols, proxies) is not modelled.

Axes: F flow, G rank, J link.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.program import Exchange, Flows, StepProgram

if TYPE_CHECKING:
    from moecast.sim.network import Rung
    from moecast.topology import Cluster

MOST_RANKS = 1024
"""There is a flow for each pair: a million of them take about a gigabyte."""

FULL = 0.99
"""Links this close to the fullest of all limit as much as it does."""

HARDLY_FULL = 0.5
"""Below, most of the time is no link's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllToAllTime:
    """How long one size takes.

    Parameters
    ----------
    bytes_per_rank
        What each rank sends, its own share included (nccl-tests' column "size").
    time_s
        Until the last rank has everything.
    algorithm_Bps, bus_Bps
        Bytes over time, and (n-1)/n of it: what really leaves a rank (nccl-tests' "algbw" and "busbw").
    utilisation
        Of the fullest link of each kind: the part of the time that it is full.
    """

    bytes_per_rank: float
    time_s: float
    algorithm_Bps: float
    bus_Bps: float
    utilisation: dict[str, float]

    @property
    def limits(self) -> tuple[str, ...]:
        """The kinds of links that are fullest; none where launches and latency take most of the time."""
        most = max(self.utilisation.values(), default=0.0)
        if most < HARDLY_FULL:
            return ()
        return tuple(kind for kind, part in self.utilisation.items() if part >= FULL * most)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "limits": list(self.limits)}


def time_all_to_all(
    cluster: Cluster,
    sizes_bytes: Sequence[float],
    *,
    rung: Rung,
    ranks: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[AllToAllTime]:
    """Time an even all-to-all over the first GPUs of a cluster, for each size.

    Parameters
    ----------
    sizes_bytes
        What each rank sends, its own share included.
    rung
        The network rung that times it.
    ranks
        GPUs that take part; None: all.
    seed
        Of the hash that picks paths.
    progress
        Called with (sizes done, sizes in all).

    Raises
    ------
    MoecastError
        Fewer than two ranks, more than the cluster has or than can be timed, or a size of nothing.
    """
    count = cluster.n_gpus if ranks is None else ranks
    program = even_all_to_all(cluster, count, 1.0, seed=seed)
    found = []
    for index, size in enumerate(sizes_bytes):
        found.append(_timed(cluster, program, size / count, count, rung))
        if progress is not None:
            progress(index + 1, len(sizes_bytes))
    return found


def even_all_to_all(cluster: Cluster, ranks: int, pair_bytes: float, *, seed: int = 0) -> StepProgram:
    """Give the program in which each of the first `ranks` GPUs sends `pair_bytes` to each other, after a barrier.

    Raises
    ------
    MoecastError
        Fewer than two ranks, or more than the cluster has or than can be timed.
    """
    if isinstance(ranks, bool) or not isinstance(ranks, int) or not 2 <= ranks <= min(cluster.n_gpus, MOST_RANKS):
        rule = f"2 to {min(cluster.n_gpus, MOST_RANKS)} GPUs take part"
        if cluster.n_gpus < 2:
            rule = "an all-to-all is between GPUs, and the cluster has one"
        raise MoecastError(rule, field="ranks", value=ranks)
    source_F, destination_F = (index.astype(np.int32) for index in np.nonzero(~np.eye(ranks, dtype=bool)))
    routes, count = cluster.routes(source_F, destination_F, seed=seed), ranks * (ranks - 1)
    zeros: npt.NDArray[np.float64] = np.zeros(count)
    flows = Flows(
        bytes_F=np.full(count, float(pair_bytes)),
        source_rank_F=source_F,
        destination_rank_F=destination_F,
        waiter_F=destination_F,
        offsets_F1=routes.offsets_F1,
        link_X=routes.link_X,
        share_X=routes.share_X,
        latency_F=routes.latency_F,
        parent_offsets_F1=np.zeros(count + 1, np.int64),
        parent_R=np.empty(0, np.int32),
        feed_delay_F=zeros,
        feed_tail_F=zeros,
    )
    exchange = Exchange(
        kind="dispatch",
        layer=0,
        flows=flows,
        setup_s=cluster.hardware.collective_launch_s + cluster.hardware.barrier_s,
        barrier=True,
        group_R=np.zeros(ranks, np.int32),
    )
    return StepProgram(
        tasks=(exchange,), n_ranks=ranks, capacity_J=cluster.capacity_J, link_names_J=tuple(cluster.link_names_J)
    )


def _timed(cluster: Cluster, program: StepProgram, pair_bytes: float, ranks: int, rung: Rung) -> AllToAllTime:
    if not 0 < pair_bytes < float("inf"):
        raise MoecastError("must be more than nothing", field="bytes", value=pair_bytes * ranks)
    (exchange,) = program.tasks
    assert isinstance(exchange, Exchange)
    flows = replace(exchange.fill(), bytes_F=np.full(exchange.fill().n, pair_bytes))
    times = rung.run(replace(program, tasks=(replace(exchange, flows=flows),)))
    taken_s, size = times.step_time_s, pair_bytes * ranks
    busy_J = times.link_bytes_J[: len(cluster.links)] / (cluster.capacity_J * taken_s)
    fullest: dict[str, float] = {}
    for kind, busy in zip(cluster.link_kind_J, busy_J, strict=True):
        if busy > fullest.get(kind, 0.0):
            fullest[kind] = float(busy)
    return AllToAllTime(
        bytes_per_rank=size,
        time_s=taken_s,
        algorithm_Bps=size / taken_s,
        bus_Bps=size / taken_s * (ranks - 1) / ranks,
        utilisation=dict(sorted(fullest.items(), key=lambda item: -item[1])),
    )
