"""EC2 P6-B300: eight B300 on NVSwitch, sixteen 400 Gb/s EFA cards, two of them to a GPU, whose packets are sprayed."""

from __future__ import annotations

from dataclasses import replace

from moecast.topology.fabric import Fabric
from moecast.topology.presets import blackwell
from moecast.topology.presets.preset import Preset

DOMAIN = replace(
    blackwell.DGX_B300,
    nic_Bps=95.8e9,
    nic_latency_s=6e-6,
    switch_latency_s=0.8e-6,
    sources={**blackwell.DGX_B300.sources}
    | {
        "pcie_Bps": "estimate: PCIe 5 x16 to each of a GPU's two cards, as in an H200 host",
        "nic_Bps": "fit on NCCL's all-to-all over 16 ranks of two nodes, 179.6 GB/s at its peak, of which 8/15 cross "
        "(awsome-distributed-ai, micro-benchmarks/expert-parallelism); both cards of a GPU as one",
        "nic_latency_s": "estimate: EFA's SRD takes some 12 us from card to card, half of it on each of the two links",
        "switch_latency_s": "estimate: an Ethernet switch of this class passes a packet in 0.5 to 0.8 us",
    },
)

PRESET = Preset(
    name="p6-b300",
    summary="8 x B300 288 GB on NVSwitch (NVLink 5), 16 x 400 Gb/s EFA",
    domain=DOMAIN,
    hardware=blackwell.B300,
    fabric=Fabric(shape="rail", oversubscription=1, routing="spray"),
)
