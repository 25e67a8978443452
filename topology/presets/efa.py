"""What the EC2 presets share: Elastic Fabric Adapters, whose packets are sprayed (SRD) and which host proxies drive.

What NCCL adds before the first byte is fitted on both pairs of rows of awsome-distributed-ai that
may set parameters: an all-to-all of about 60 MiB takes 234 us more over 16 B300 than its peak rate
would, and 221 us more over 32 H100. What the hardware table has already, a launch and a barrier,
the path's latency, and what proxies take to post messages to 8 and to 24 ranks of other domains
(`moecast.sim.collectives.protocols`) are taken off.
"""

from __future__ import annotations

from dataclasses import replace

from moecast.topology.hardware import Hardware
from moecast.topology.recipe import Domain

ROWS = "awsome-distributed-ai, micro-benchmarks/expert-parallelism"
NETWORK_LAUNCH_s = 186e-6

_LATENCY = {
    "nic_latency_s": "estimate: EFA's SRD takes some 12 us from card to card, half of it on each of the two links",
    "switch_latency_s": "estimate: an Ethernet switch of this class passes a packet in 0.5 to 0.8 us",
}


def with_efa(domain: Domain, *, nic_Bps: float, source: str) -> Domain:
    """Give the domain EFA cards; all cards of a GPU stand as one."""
    sources = {**domain.sources, **_LATENCY, "nic_Bps": f"{source}; all cards of a GPU as one"}
    return replace(domain, nic_Bps=nic_Bps, nic_latency_s=6e-6, switch_latency_s=0.8e-6, sources=sources)


def with_proxies(hardware: Hardware) -> Hardware:
    """Give the table what NCCL adds over EFA."""
    source = f"fit on NCCL's all-to-all of about 60 MiB beside its peak, 16 B300 and 32 H100 ({ROWS})"
    sources = {**hardware.sources, "network_launch_s": source}
    return replace(hardware, network_launch_s=NETWORK_LAUNCH_s, sources=sources)
