"""DGX B300: eight B300 on NVSwitch, one ConnectX-8 of 800 Gb/s per GPU, InfiniBand."""

from __future__ import annotations

from moecast.topology.fabric import Fabric
from moecast.topology.presets import blackwell
from moecast.topology.presets.preset import Preset

PRESET = Preset(
    name="dgx-b300",
    summary="8 x B300 288 GB on NVSwitch (NVLink 5), 8 x 800 Gb/s InfiniBand",
    domain=blackwell.DGX_B300,
    hardware=blackwell.B300,
    fabric=Fabric(shape="rail", oversubscription=1, routing="spray"),
)
