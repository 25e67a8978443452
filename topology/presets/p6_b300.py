"""EC2 P6-B300: eight B300 on NVSwitch, sixteen 400 Gb/s EFA cards, two of them to a GPU."""

from __future__ import annotations

from dataclasses import replace

from moecast.topology.fabric import Fabric
from moecast.topology.presets import blackwell, efa
from moecast.topology.presets.preset import Preset

_HOST = replace(
    blackwell.DGX_B300,
    sources={**blackwell.DGX_B300.sources}
    | {"pcie_Bps": "estimate: PCIe 5 x16 to each of a GPU's two cards, as in an H200 host"},
)

PRESET = Preset(
    name="p6-b300",
    summary="8 x B300 288 GB on NVSwitch (NVLink 5), 16 x 400 Gb/s EFA",
    domain=efa.with_efa(
        _HOST,
        nic_Bps=95.8e9,
        source="fit on NCCL's all-to-all over 16 ranks of two nodes, 179.6 GB/s at its peak, of "
        f"which 8/15 cross ({efa.ROWS})",
    ),
    hardware=efa.with_proxies(blackwell.B300),
    fabric=Fabric(shape="rail", oversubscription=1, routing="spray"),
)
