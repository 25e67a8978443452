"""How a replay is started. Needs no torch, so that those who do not replay need none."""

from __future__ import annotations

import os

GPUS_PER_NODE = 8


def under_torchrun() -> bool:
    """Tell whether this process is one of those that `torchrun` started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch_line(ranks: int) -> str:
    """Say how a job of this many ranks is started."""
    if ranks <= GPUS_PER_NODE:
        return f"torchrun --no-python --nproc-per-node {ranks} moecast validate ..."
    nodes = -(-ranks // GPUS_PER_NODE)
    return (
        f"torchrun --no-python --nnodes {nodes} --nproc-per-node {-(-ranks // nodes)} "
        "--rdzv-backend c10d --rdzv-endpoint HOST:PORT moecast validate ... on each node"
    )
