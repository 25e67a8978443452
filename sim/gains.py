"""What more of each resource would save: a step timed again with twice of it, one resource at a time.

The bottleneck is the resource with the largest gain, not the fullest link: a link that is full
while others wait for something else gains nothing by being twice as fast. Gains are each alone:
they do not add up, and two resources that take turns may gain little each. A NIC and its PCIe stand
in a row and are nearly as fast as each other, so that both together are tried, too. A gain may be
negative: with one thing faster, flows meet that did not meet before.

A resource is a kind of link (all of them at once, both directions of a cable), what a copy costs
its sender, a kind of compute, the launches and barriers of communication, or the waiting for peers
(experts as if every rank had its EP group's mean of them). What cannot save `LEAST` of the step is
not timed: links that carry nothing, and work of which all stages together, each rank's largest part
of each, could not.

Axes: G rank, J link.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.links import ISSUE_KIND, link_kinds
from moecast.sim.forward import ForwardPass
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import Compute, Exchange, StepProgram, StepTimes, Task
from moecast.sim.schedules import program_of

if TYPE_CHECKING:
    from moecast.topology import Cluster

Float = npt.NDArray[np.float64]

COMPUTE_NAMES = {
    "expert": "expert compute", "attention": "attention", "router": "router compute", "other": "other compute",
}  # fmt: skip
LINK_NAMES = {"leaf": "leaf uplinks", "nic": "NICs", "nvlink": "NVLink", "pcie": "PCIe", ISSUE_KIND: "copy issue"}
LAUNCHES, PEERS, ISSUE = "launches of communication", "waiting for uneven experts", "copy issue"
TO_FABRIC = "NICs with PCIe"
NONE, NO_ONE = "nothing tried", "no single resource"
TOGETHER = {TO_FABRIC: {LINK_NAMES["nic"], LINK_NAMES["pcie"]}}
"""Resources of several kinds of cable."""
MORE_TOGETHER = 0.01
"""The part of the step that they have to save beyond the best of them to be one."""
LEAST = 0.01
"""The part of the step that a resource has to save to be listed."""

EXPLAINED = {
    ISSUE: "a GPU's cost of each copy that low-latency kernels send (7 KB messages in decode), by fitted costs of any",
    LAUNCHES: "collective launches, barriers and exchanges of counts",
    PEERS: "saved by even experts, as if every rank of an EP group had the group's mean of them",
}
"""What resources are that have no name in the field."""


def programs_with_more(
    forward: ForwardPass,
    program: StepProgram,
    times: StepTimes,
    again: Callable[[Cluster], StepProgram] | None = None,
) -> dict[str, Callable[[], StepProgram]]:
    """Say how to make the program of a step with twice of each resource that may save `LEAST` of it, by name.

    Parameters
    ----------
    forward, program, times
        The step as it is; its traffic is not counted again.
    again
        Makes the program on another cluster; None: from `forward`.
    """
    varied: dict[str, Callable[[], StepProgram]] = {}
    for name, change in _changes(program).items():
        stages = tuple(change(stage) for stage in program.tasks)
        saved_s = sum(_most_saved(old, new) for old, new in zip(program.tasks, stages, strict=True))
        if saved_s > 0 and saved_s >= LEAST * times.step_time_s:
            varied[name] = partial(replace, program, tasks=stages)
    cluster = forward.placed.sites.cluster
    kinds = zip(link_kinds(cluster), times.link_bytes_J, strict=True)
    used = dict.fromkeys(cable_of(kind) for kind, units in kinds if units > 0)
    for name in (*used, TO_FABRIC) if used.keys() >= TOGETHER[TO_FABRIC] else used:
        more = cluster_with_more(cluster, name)
        varied[name] = partial(_laid_out_on, forward, more) if again is None else partial(again, more)
    return varied


def cluster_with_more(cluster: Cluster, name: str) -> Cluster:
    """The cluster with twice the capacity of a kind of cable, or of some together, or of the copy issue's rate.

    Laid out anew on it, a plan's flows and the chunks that relays wait for are those of the faster
    cluster.
    """
    if name == ISSUE:
        table = cluster.hardware
        return replace(cluster, hardware=replace(table, message_s=table.message_s / 2, copy_cost=table.copy_cost / 2))
    links = (
        replace(link, capacity_Bps=2 * link.capacity_Bps) if cable_of(link.kind) in TOGETHER.get(name, {name}) else link
        for link in cluster.links
    )
    return replace(cluster, links=tuple(links))


def cable_of(kind: str) -> str:
    """Name what a kind of link is a direction of: "leaf-up" and "leaf-down" are the leaf uplinks."""
    stem = kind if kind == ISSUE_KIND else kind.rsplit("-", 1)[0]
    return LINK_NAMES.get(stem, f"{stem} links")


def marginal_gains(times_s: Mapping[str, float], step_s: float) -> dict[str, float]:
    """Part of the step time that twice of each resource saves, the largest first.

    Below 0 where it takes longer.

    Parameters
    ----------
    times_s
        Of the step with twice of each resource, by name.
    step_s
        Of the step as it is.
    """
    gains = {name: 1 - time_s / step_s for name, time_s in times_s.items()}
    return dict(sorted(gains.items(), key=lambda item: (-item[1], item[0])))


def bottleneck_of(gains: Mapping[str, float]) -> str:
    """Name the resource that gains most, if any gains anything.

    Several together are it only where they save `MORE_TOGETHER` more than the best of them alone.
    """
    if not gains:
        return NONE

    def is_one(name: str) -> bool:
        alone = [gains[other] for other in TOGETHER.get(name, ()) if other in gains]
        return gains[name] >= max(alone, default=-np.inf) + MORE_TOGETHER

    most = max((name for name in gains if name not in TOGETHER or is_one(name)), key=lambda name: gains[name])
    return most if gains[most] > 0 else NO_ONE


def listed_gains(gains: Mapping[str, float]) -> dict[str, float]:
    """Those that change the step by `LEAST` of it, either way, the largest first."""
    return {name: gain for name, gain in sorted(gains.items(), key=lambda item: -item[1]) if abs(gain) >= LEAST}


def _changes(program: StepProgram) -> dict[str, Callable[[Task], Task]]:
    """What twice of a resource makes of a stage, by name, for those that are no links."""

    def computing(kind: str, change: Callable[[Float], Float], stage: Task) -> Task:
        if not isinstance(stage, Compute) or stage.kind != kind:
            return stage
        return replace(stage, seconds_R=np.ascontiguousarray(change(stage.seconds_R)))

    def launching(stage: Task) -> Task:
        return replace(stage, setup_s=stage.setup_s / 2) if isinstance(stage, Exchange) else stage

    changes: dict[str, Callable[[Task], Task]] = {
        name: partial(computing, kind, lambda seconds_G: seconds_G / 2) for kind, name in COMPUTE_NAMES.items()
    }
    # Other exchanges may be of other groups: sums are added up among the ranks that share tokens.
    group_R = next((task.group_R for task in program.exchanges if task.kind == "dispatch"), None)
    if group_R is not None:
        changes[PEERS] = partial(computing, "expert", partial(_group_mean, group_R))
    return {**changes, LAUNCHES: launching}


def _most_saved(before: Task, after: Task) -> float:
    """Seconds by which a stage, without its flows, is over sooner on some rank at the most."""
    if isinstance(before, Compute) and isinstance(after, Compute):
        return float((before.seconds_R - after.seconds_R).max(initial=0.0))
    assert isinstance(before, Exchange)
    assert isinstance(after, Exchange)
    return before.setup_s - after.setup_s


def _laid_out_on(forward: ForwardPass, cluster: Cluster) -> StepProgram:
    """The same tokens' pass over another cluster's links."""
    placed = forward.placed
    changed = PlacedModel.of(cluster, placed.model, placed.plan, phase=placed.phase, seed=placed.sites.seed)
    there = replace(forward, placed=changed)
    return program_of(there)


def _group_mean(group_R: npt.NDArray[np.int32], seconds_R: Float) -> Float:
    mean_K = np.bincount(group_R, seconds_R) / np.maximum(np.bincount(group_R), 1)
    return np.asarray(mean_K[group_R])
