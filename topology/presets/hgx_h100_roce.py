"""HGX H100 on Ethernet: as the DGX, but RoCE switches that hash flows (ECMP) and take longer to pass a packet."""

from __future__ import annotations

from dataclasses import replace

from moecast.topology.fabric import Fabric
from moecast.topology.presets import hopper
from moecast.topology.presets.preset import Preset

DOMAIN = replace(
    hopper.DGX,
    nic_latency_s=0.9e-6,
    switch_latency_s=0.8e-6,
    sources=hopper.DOMAIN_SOURCES
    | {
        "nic_Bps": "estimate: as a 400 Gb/s InfiniBand NIC, 48 to 49 of its 50 GB/s",
        "nic_latency_s": "estimate: NIC to NIC over one Ethernet switch in 1.8 us, half of it on each of the two links",
        "switch_latency_s": "estimate: an Ethernet switch of this class passes a packet in 0.5 to 0.8 us",
    },
)

PRESET = Preset(
    name="hgx-h100-roce",
    summary="8 x H100 80 GB on NVSwitch (NVLink 4), 8 x 400 Gb/s Ethernet (RoCE)",
    domain=DOMAIN,
    hardware=hopper.H100,
    fabric=Fabric(shape="rail", oversubscription=1, routing="ecmp"),
)
