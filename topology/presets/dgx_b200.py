"""DGX B200: eight B200 on NVSwitch, one ConnectX-7 per GPU, InfiniBand."""

from __future__ import annotations

from moecast.topology.fabric import Fabric
from moecast.topology.presets import blackwell
from moecast.topology.presets.preset import Preset

PRESET = Preset(
    name="dgx-b200",
    summary="8 x B200 180 GB on NVSwitch (NVLink 5), 8 x 400 Gb/s InfiniBand",
    domain=blackwell.DGX_B200,
    hardware=blackwell.B200,
    fabric=Fabric(shape="rail", oversubscription=1, routing="spray"),
)
