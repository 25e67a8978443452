"""What more of each resource would save: a step timed again with twice of it, one resource at a time.

The bottleneck is the resource with the largest gain, not the fullest link: a link that is full while others wait for
something else gains nothing by being twice as fast. Gains are each alone: they do not add up, and two resources that
take turns may gain little each.

A resource is a kind of link (all of them at once, both directions of a cable), the copy issue of low-latency kernels, a
kind of compute, the launches and barriers of communication, or the waiting for peers (experts as if every rank had its
EP group's mean of them).

Axes: G rank, J link.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.links import ISSUE_KIND
from moecast.sim.program import Compute, Exchange, Flows, Stage, StepProgram

if TYPE_CHECKING:
    from moecast.topology import Cluster

Float = npt.NDArray[np.float64]

COMPUTE_NAMES = {
    "expert": "expert compute", "attention": "attention", "router": "router compute", "other": "other compute",
}  # fmt: skip
LINK_NAMES = {"leaf": "leaf uplinks", "nic": "NICs", "nvlink": "NVLink", "pcie": "PCIe", ISSUE_KIND: "copy issue"}
LAUNCHES, PEERS, ISSUE = "launches of communication", "waiting for uneven experts", "copy issue"
NONE = "nothing tried"

EXPLAINED = {
    ISSUE: "a GPU's cost of each copy that low-latency kernels send (7 KB messages in decode)",
    LAUNCHES: "collective launches, barriers and exchanges of counts",
    PEERS: "experts as if every rank of an EP group had the group's mean of them",
}
"""What resources are that have no name in the field."""


def clusters_with_more(cluster: Cluster) -> dict[str, Cluster]:
    """The cluster with twice of each kind of cable, of the copy issue's rate, and of the speed of launches, by name.

    Laid out anew on each, a plan's flows and the chunks that relays wait for are those of the faster cluster.
    """
    found = {}
    for name in dict.fromkeys(cable_of(link.kind) for link in cluster.links):
        links = tuple(
            replace(link, capacity_Bps=2 * link.capacity_Bps) if cable_of(link.kind) == name else link
            for link in cluster.links
        )
        found[name] = replace(cluster, links=links)
    hardware = cluster.hardware
    found[ISSUE] = replace(cluster, hardware=replace(hardware, message_s=hardware.message_s / 2))
    fixed = {name: getattr(hardware, name) / 2 for name in ("collective_launch_s", "count_exchange_s", "barrier_s")}
    found[LAUNCHES] = replace(cluster, hardware=replace(hardware, **fixed))
    return found


def programs_with_more(program: StepProgram) -> dict[str, StepProgram]:
    """The program with each kind of compute twice as fast, and with even experts, by name."""
    varied: dict[str, StepProgram] = {}
    for compute, name in COMPUTE_NAMES.items():
        if any(isinstance(stage, Compute) and stage.kind == compute for stage in program.stages):
            varied[name] = _with_compute(program, compute, lambda seconds_G: seconds_G / 2)
    group_G = next((stage.group_G for stage in program.stages if isinstance(stage, Exchange)), None)
    if group_G is not None:
        varied[PEERS] = _with_compute(program, "expert", lambda seconds_G: _group_mean(seconds_G, group_G))
    return varied


def cable_of(kind: str) -> str:
    """Name what a kind of link is a direction of: "leaf-up" and "leaf-down" are the leaf uplinks."""
    stem = kind if kind == ISSUE_KIND else kind.rsplit("-", 1)[0]
    return LINK_NAMES.get(stem, f"{stem} links")


def marginal_gains(times_s: Mapping[str, float], step_s: float) -> dict[str, float]:
    """Part of the step time that twice of each resource saves, the largest first.

    Parameters
    ----------
    times_s
        Of the step with twice of each resource, by name.
    step_s
        Of the step as it is.
    """
    if step_s <= 0:
        return {}
    gains = {name: max(0.0, 1 - time_s / step_s) for name, time_s in times_s.items()}
    return dict(sorted(gains.items(), key=lambda item: (-item[1], item[0])))


def link_load(flows: Flows, n_links: int) -> Float:
    """Units that the flows put on each link."""
    units_X = np.repeat(flows.bytes_F, np.diff(flows.offsets_F1)) * flows.share_X
    return np.bincount(flows.link_X, units_X, n_links).astype(np.float64)


def _with_compute(program: StepProgram, kind: str, change: Callable[[Float], Float]) -> StepProgram:
    return _with_stages(
        program,
        lambda stage: (
            replace(stage, seconds_G=np.ascontiguousarray(change(stage.seconds_G)))
            if isinstance(stage, Compute) and stage.kind == kind
            else stage
        ),
    )


def _with_stages(program: StepProgram, change: Callable[[Stage], Stage]) -> StepProgram:
    return replace(program, stages=tuple(change(stage) for stage in program.stages))


def _group_mean(seconds_G: Float, group_G: npt.NDArray[np.int32]) -> Float:
    mean_K = np.bincount(group_G, seconds_G) / np.maximum(np.bincount(group_G), 1)
    return np.asarray(mean_K[group_G])
