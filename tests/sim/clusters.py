"""Clusters whose kernels and exchanges are closed forms: rooflines, and links with the hardware table's fixed costs."""

from __future__ import annotations

from moecast.sim import kernels_on
from moecast.topology import Cluster, load_cluster


def by_roofline(name: str, *, nodes: int | None = None, fabric: str | None = None) -> Cluster:
    """A preset without fitted costs."""
    return kernels_on(load_cluster(name, nodes=nodes, fabric=fabric), kernels="roofline")
