"""What stands behind the time of a collective by itself: published rows, and measured tables of NCCL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moecast.sim.accuracy.grounds import NO_ROWS, Grounds, grounds_of_family, unmeasured_hardware
from moecast.sim.accuracy.known_errors import known_errors
from moecast.sim.cost.fitted_errors import fitted_errors
from moecast.sim.cost.gpus import gpu_key
from moecast.units import format_percent

if TYPE_CHECKING:
    from moecast.topology import Cluster

INSIDE, BETWEEN = "collectives inside a node", "collectives between nodes"
MOST_RANKS = 8
"""Of one domain: no row that judges has more."""


def collective_grounds(cluster: Cluster, operation: str, *, kind: str = "nccl", ranks: int) -> Grounds:
    """Find what stands behind a collective over the first `ranks` GPUs of a cluster; factors are on its time."""
    inside = len(np.unique(cluster.domain_of_gpu_G[:ranks])) == 1
    checks = (
        (kind != "nccl", f"kind {kind} over the links alone"),
        (operation == "send-recv", "send-recv"),
        (inside and ranks > MOST_RANKS, f"{ranks} GPUs of one domain: rows have at most {MOST_RANKS}"),
    )
    why = next((why for found, why in checks if found), "") or unmeasured_hardware(cluster.hardware)
    about = {"kernels": cluster.hardware.kernels, "engine": "nccl", "engine_version": "", "routing": ""}
    about |= {"judged_by": "fluid"}
    family = INSIDE if inside else BETWEEN
    return grounds_of_family(known_errors(), family, f"nccl on {gpu_key(cluster.hardware)}", why, about)


def collective_text(grounds: Grounds) -> str:
    """Say in a sentence what a collective's interval rests on, or why there is none."""
    if grounds.why_not:
        return f"no interval: {NO_ROWS}: {grounds.why_not}"
    said = grounds.to_json()
    gpu = grounds.source.removeprefix("nccl on ")
    tables = "; ".join(
        f"{line.rows:,} rows of NCCL on {gpu}: median {format_percent(line.median)}, p90 {format_percent(line.p90)}"
        for line in fitted_errors("collectives")
        if (line.gpu, line.engine) == (gpu, "nccl")
    )
    return (
        f"80 %: by {said['rows']} rows of {said['configurations']} configurations that set nothing "
        f"({grounds.family}; median error {format_percent(said['median'])}, p90 "
        f"{format_percent(said['p90'])})" + (f"; in measured tables {tables}" if tables else "")
    )
