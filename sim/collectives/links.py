"""The links of a step's program: the cluster's, and those on which low-latency kernels issue their copies.

Axes: F flow, X (flow, link) pair, J link.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from moecast.sim.sites import Sites
from moecast.topology import Cluster

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

ISSUE_KIND = "copy-issue"


def link_capacity(sites: Sites) -> Float:
    """Capacities of the cluster's links, then of two issue links per GPU (NVLink, NIC): one second per second."""
    return np.concatenate([sites.cluster.capacity_J, np.ones(2 * sites.cluster.n_gpus)])


def link_names(sites: Sites) -> tuple[str, ...]:
    """Name the links in the order of `link_capacity`."""
    cluster = sites.cluster
    issue = [f"copies from {gpu.name} over {way}" for way in ("NVLink", "its NIC") for gpu in cluster.gpus]
    return (*cluster.link_names_J, *issue)


def link_kinds(cluster: Cluster) -> tuple[str, ...]:
    """Give the kinds of the links in the order of `link_capacity`; an issue link's is "copy-issue"."""
    return (*cluster.link_kind_J, *[ISSUE_KIND] * 2 * cluster.n_gpus)


class HasPaths(Protocol):
    """Routes, or anything else with the links of flows."""

    @property
    def offsets_F1(self) -> Int:
        """CSR of the links of each flow."""

    @property
    def link_X(self) -> Int32:
        """The links."""

    @property
    def share_X(self) -> Float:
        """Link units per byte."""


def with_issue_links(sites: Sites, source_F: Int32, routes: HasPaths, copy_bytes: float) -> tuple[Int, Int32, Float]:
    """Append the sender's issue link, over NVLink or over the NIC, to the links of each flow that leaves its GPU.

    A byte takes `message_s` / `copy_bytes` + 1 / (rate of the sender's own links) seconds of it, so
    that a sender needs the sum of the two for its copies, as low-latency kernels do: the rows that
    `Hardware.message_s` is fitted on.

    Returns
    -------
    offsets_F1, link_X, share_X
    """
    return with_senders_links(sites, source_F, routes, per_byte_s=sites.cluster.hardware.message_s / copy_bytes)


def slowed_sends(sites: Sites, source_F: Int32, routes: HasPaths, slowdown: float) -> tuple[Int, Int32, Float]:
    """Append the sender's issue link likewise: all that it sends over NVLink, or its NIC, takes `slowdown` the time.

    Flows that have an issue link already keep it as well.

    Returns
    -------
    offsets_F1, link_X, share_X
    """
    return with_senders_links(sites, source_F, routes, slowdown=slowdown)


def with_senders_links(
    sites: Sites,
    source_F: Int32,
    routes: HasPaths,
    *,
    per_byte_s: Float | float = 0.0,
    slowdown: Float | float = 1.0,
) -> tuple[Int, Int32, Float]:
    """Append the sender's issue link: a byte takes `per_byte_s`, and `slowdown` of its time on the sender's own links.

    Returns
    -------
    offsets_F1, link_X, share_X
    """
    cluster = sites.cluster
    kind_J = np.array(link_kinds(cluster))
    sending_J = np.isin(kind_J, ("nvlink-out", "pcie-out", "nic-out"))
    slowness_J = np.where(sending_J, 1 / link_capacity(sites), 0.0)
    slowness_F = _row_max(routes.share_X * slowness_J[routes.link_X], routes.offsets_F1)
    over_nic_J = kind_J == "nic-out"  # names are compared once a link, not once a pair
    nic_F = _row_max(over_nic_J[routes.link_X], routes.offsets_F1) > 0
    gpu_F = sites.gpu_G[source_F]
    sends_F = np.diff(routes.offsets_F1) > 0
    ends = routes.offsets_F1[1:][sends_F]
    issue_F = (len(cluster.links) + nic_F * cluster.n_gpus + gpu_F).astype(np.int32)
    seconds_F = per_byte_s + slowdown * slowness_F
    return (
        routes.offsets_F1 + np.concatenate([[0], np.cumsum(sends_F)]),
        np.insert(routes.link_X, ends, issue_F[sends_F]),
        np.insert(routes.share_X, ends, seconds_F[sends_F]),
    )


def _row_max(value_X: npt.NDArray[Any], offsets_F1: Int) -> Float:
    """Find the largest value of each row of a CSR, 0 where it is empty or nothing is above 0."""
    largest_F, filled_F = np.zeros(len(offsets_F1) - 1), np.diff(offsets_F1) > 0
    # An empty row starts where the next one does: without it each start stands for one row.
    largest_F[filled_F] = np.maximum.reduceat(value_X, offsets_F1[:-1][filled_F]) if filled_F.any() else 0.0
    return np.maximum(largest_F, 0.0)
