"""EC2 P5en: eight H200 on NVSwitch, sixteen 200 Gb/s EFA cards, two of them to a GPU."""

from __future__ import annotations

from moecast.topology.fabric import Fabric
from moecast.topology.presets import dgx_h200, efa, hopper
from moecast.topology.presets.preset import Preset

PRESET = Preset(
    name="p5en",
    summary="8 x H200 141 GB on NVSwitch (NVLink 4), 16 x 200 Gb/s EFA",
    domain=efa.with_efa(
        hopper.DGX,
        nic_Bps=47.9e9,
        source="estimate: 95.8 % of its 50 GB/s, as two cards of a B300 reach of theirs; no row of a P5en",
    ),
    hardware=efa.with_proxies(dgx_h200.HARDWARE),
    fabric=Fabric(shape="rail", oversubscription=1, routing="spray"),
)
