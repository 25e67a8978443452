"""EC2 P5: eight H100 on NVSwitch, thirty-two 100 Gb/s EFA cards, four of them to a GPU."""

from __future__ import annotations

from moecast.topology.fabric import Fabric
from moecast.topology.presets import efa, hopper
from moecast.topology.presets.preset import Preset

PRESET = Preset(
    name="p5",
    summary="8 x H100 80 GB on NVSwitch (NVLink 4), 32 x 100 Gb/s EFA",
    domain=efa.with_efa(
        hopper.DGX,
        nic_Bps=41.7e9,
        source="fit on NCCL's all-to-all over 32 ranks of four nodes, 53.9 GB/s at its peak, of "
        f"which 24/31 cross ({efa.ROWS})",
    ),
    hardware=efa.with_proxies(hopper.H100),
    fabric=Fabric(shape="rail", oversubscription=1, routing="spray"),
)
