"""Tasks of a stage of the forward pass. Axes: G, R rank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.carriers import has_carriers
from moecast.sim.collectives.fitted import gathered_setup_s
from moecast.sim.collectives.protocols import NETWORK_POST_s
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import Compute, Exchange, FlowSource, Kind

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

OUTSIDE = -1
"""The layer of stages outside the MoE layers."""


def compute_of(kind: Kind, layer: int, seconds_G: Float) -> Compute:
    """Work of all ranks."""
    return Compute(kind=kind, layer=layer, seconds_R=np.ascontiguousarray(seconds_G, np.float64))


def exchange_of(placed: PlacedModel, kind: Kind, layer: int, flows: FlowSource, *, barrier: bool = False) -> Exchange:
    """An exchange of the ranks of each EP group, with what the hardware table has it cost to launch."""
    hardware = placed.sites.cluster.hardware
    setup_s = hardware.collective_launch_s
    if barrier:
        setup_s += hardware.barrier_s
        if placed.sites.groups_leave_domains:  # NCCL's proxies send it, to each member that gets something of its own
            posts = placed.sites.most_away if placed.mode.per_choice else 0
            setup_s += hardware.network_launch_s + posts * NETWORK_POST_s
    return Exchange(kind=kind, layer=layer, flows=flows, setup_s=setup_s, barrier=barrier, group_R=placed.sites.group_G)


def token_exchange(placed: PlacedModel, kind: Kind, layer: int, counts: Int, tokens_G: Int) -> Exchange:
    """A dispatch or a combine of counted copies, of tokens at home on each rank [G]."""
    template = placed.dispatch_flows if kind == "dispatch" else placed.combine_flows
    exchange = exchange_of(placed, kind, layer, template.counted(counts), barrier=placed.mode.barrier)
    hardware, sites = placed.sites.cluster.hardware, placed.sites
    if not placed.mode.gathers or sites.groups_leave_domains or sites.n_members < 2 or not has_carriers(hardware):
        return exchange
    # An all-gather by NCCL: which protocol it takes, and so how long it is beside its bytes, goes
    # by their number.
    size_bytes = float(np.bincount(sites.group_G, tokens_G).max()) * template.copy_bytes
    beside_s = gathered_setup_s(hardware, sites.n_members, size_bytes)
    return replace(exchange, setup_s=max(exchange.setup_s, beside_s))
