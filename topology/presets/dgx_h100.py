"""DGX H100: eight H100 on NVSwitch, one ConnectX-7 per GPU, InfiniBand."""

from __future__ import annotations

from moecast.topology.fabric import Fabric
from moecast.topology.presets import hopper
from moecast.topology.presets.preset import Preset

PRESET = Preset(
    name="dgx-h100",
    summary="8 x H100 80 GB on NVSwitch (NVLink 4), 8 x 400 Gb/s InfiniBand",
    domain=hopper.DGX,
    hardware=hopper.H100,
    fabric=Fabric(shape="rail", oversubscription=1, routing="spray"),
)
