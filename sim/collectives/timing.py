"""A collective by itself, what nccl-tests run: what a cluster's links give, without a model or routing.

It has a fixed cost, latency and the links' rates. Where a kind is named, the fixed cost is the
hardware table's (a launch and a barrier); NCCL's choice has NCCL's own (see `protocols`). How far
NCCL's channels stay below the links between nodes is not modelled, what its proxies take to post
messages is.

Axes: J link, D group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.collectives.choice import NCCL, Choice, candidates, pick
from moecast.sim.collectives.links import link_capacity, link_names
from moecast.sim.collectives.operations import bus_factor
from moecast.sim.collectives.two_dimensional import CollectiveStep, two_dimensional_all_to_all
from moecast.sim.plan import Plan
from moecast.sim.program import Compute, Exchange, StepProgram, Task
from moecast.sim.sites import Sites

Int = npt.NDArray[np.int64]

if TYPE_CHECKING:
    from moecast.sim.network import Rung
    from moecast.topology import Cluster

MOST_RANKS = 1024
"""A direct collective has a flow for each pair: a million of them take about a gigabyte."""

FULL = 0.99
"""Links this close to the fullest of all limit as much as it does."""

HARDLY_FULL = 0.5
"""Below, most of the time is no link's."""

TWO_DIMENSIONAL = "2dh"
"""The name of Tutel's all-to-all where a kind is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTime:
    """How long one size takes.

    Parameters
    ----------
    bytes_per_rank
        nccl-tests' column "size" (see `moecast.sim.collectives.operations`).
    carried_by
        The kind, and NCCL's protocol.
    time_s
        Until the last rank has everything.
    algorithm_Bps, bus_Bps
        Bytes over time, and that times the operation's factor (nccl-tests' "algbw" and "busbw").
    utilisation
        Of the fullest link of each kind: the part of the time that it is full.
    """

    bytes_per_rank: float
    carried_by: str
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


def time_collective(
    cluster: Cluster,
    operation: str,
    sizes_bytes: Sequence[float],
    *,
    rung: Rung,
    kind: str = NCCL,
    ranks: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[CollectiveTime]:
    """Time a collective over the first GPUs of a cluster, for each size.

    Parameters
    ----------
    operation
        One of `OPERATIONS`.
    sizes_bytes
        As nccl-tests count them.
    rung
        The network rung that times it.
    kind
        One of the operation's `KINDS`, "2dh" of an all-to-all, or "nccl": what NCCL would take for
        the size.
    ranks
        GPUs that take part; None: all.
    seed
        Of the hash that picks paths.
    progress
        Called with (sizes done, sizes in all).

    Raises
    ------
    MoecastError
        Fewer than two ranks, more than the cluster has or than can be timed, a size of nothing, no
        such operation or kind, or one that does not run on these ranks.
    """
    sites = _sites(cluster, cluster.n_gpus if ranks is None else ranks, seed)
    programs = _programs(sites, operation, kind)
    found = []
    for index, size in enumerate(sizes_bytes):
        if not 1 <= size < 2**62:
            raise MoecastError("must be at least a byte", field="bytes", value=size)
        name, program = programs(round(size))
        found.append(_timed(sites, operation, size, name, program, rung))
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
    sites = _sites(cluster, ranks, seed)
    everyone_DM, whole = np.arange(ranks)[None, :], pair_bytes * ranks
    choices = candidates(sites, everyone_DM, operation="all-to-all", unit_bytes=whole)
    return program_of(sites, [exchange_of(pick(choices, sites, [whole]), sites, np.array([1]))])


def check_ranks(cluster: Cluster, ranks: object) -> int:
    """Give the number of ranks of a collective by itself.

    Raises
    ------
    MoecastError
        Fewer than two ranks, or more than the cluster has or than can be timed.
    """
    if isinstance(ranks, bool) or not isinstance(ranks, int) or not 2 <= ranks <= min(cluster.n_gpus, MOST_RANKS):
        rule = f"2 to {min(cluster.n_gpus, MOST_RANKS)} GPUs take part"
        if cluster.n_gpus < 2:
            rule = "a collective is between GPUs, and the cluster has one"
        raise MoecastError(rule, field="ranks", value=ranks)
    return int(ranks)


def exchange_of(choice: Choice, sites: Sites, counts_D: Int) -> Exchange:
    """Give the exchange in which all ranks of a sites, one group, run a collective of so many units."""
    return Exchange(
        kind="other",
        layer=-1,
        flows=choice.template.counted(counts_D),
        setup_s=choice.setup_s(sites),
        barrier=True,
        group_R=np.zeros(sites.n_ranks, np.int32),
    )


def program_of(sites: Sites, tasks: Sequence[Task]) -> StepProgram:
    """Give a program of nothing but these tasks of all ranks."""
    return StepProgram(
        tasks=tuple(tasks),
        n_ranks=sites.n_ranks,
        capacity_J=link_capacity(sites),
        link_names_J=link_names(sites),
    )


def _sites(cluster: Cluster, ranks: int, seed: int) -> Sites:
    count = check_ranks(cluster, ranks)
    plan = Plan.contiguous(layers=1, experts=count, choices=1, ep=count)
    return Sites.of(cluster, plan, seed=seed)


def _programs(sites: Sites, operation: str, kind: str) -> Callable[[int], tuple[str, StepProgram]]:
    """Give the function from a size to the name of what carries it and its program."""
    everyone_DM = np.arange(sites.n_ranks)[None, :]
    if (operation, kind) == ("all-to-all", TWO_DIMENSIONAL):
        steps = two_dimensional_all_to_all(sites, everyone_DM)
        return lambda size: (kind, program_of(sites, list(_in_sequence(sites, steps, size))))
    choices = candidates(sites, everyone_DM, operation=operation, kind=kind)

    def program(size: int) -> tuple[str, StepProgram]:
        choice = pick(choices, sites, [size])
        return choice.name, program_of(sites, [exchange_of(choice, sites, np.array([size]))])

    return program


def _in_sequence(sites: Sites, steps: Sequence[CollectiveStep], size: int) -> Iterator[Task]:
    """Exchanges one after another, each behind its copies."""
    hardware = sites.cluster.hardware
    for step in steps:
        if step.copied:
            moved_s = 2 * step.copied * size / (hardware.memory_Bps * hardware.efficiency["memory"])
            seconds_R = np.full(sites.n_ranks, hardware.kernel_launch_s + moved_s)
            yield Compute(kind="other", layer=-1, seconds_R=seconds_R)
        if step.template is not None:
            yield Exchange(
                kind="other",
                layer=-1,
                flows=step.template.counted(np.array([size])),
                setup_s=hardware.collective_launch_s + hardware.barrier_s,
                barrier=True,
                group_R=np.zeros(sites.n_ranks, np.int32),
            )


def _timed(sites: Sites, operation: str, size: float, name: str, program: StepProgram, rung: Rung) -> CollectiveTime:
    times, cluster = rung.run(program), sites.cluster
    taken_s = times.step_time_s
    busy_J = times.link_bytes_J[: len(cluster.links)] / (cluster.capacity_J * taken_s)
    return CollectiveTime(
        bytes_per_rank=size,
        carried_by=name,
        time_s=taken_s,
        algorithm_Bps=size / taken_s,
        bus_Bps=size / taken_s * bus_factor(operation, sites.n_ranks),
        utilisation=fullest(cluster, busy_J),
    )


def fullest(cluster: Cluster, busy_J: np.ndarray) -> dict[str, float]:
    """How full the fullest link of each kind is, the fullest first."""
    most: dict[str, float] = {}
    for kind, busy in zip(cluster.link_kind_J, busy_J, strict=True):
        if busy > most.get(kind, 0.0):
            most[kind] = float(busy)
    return dict(sorted(most.items(), key=lambda item: -item[1]))
