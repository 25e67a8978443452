"""DGX H200: eight H200 on NVSwitch, one ConnectX-7 per GPU, InfiniBand."""

from __future__ import annotations

from dataclasses import replace

from moecast.topology.fabric import Fabric
from moecast.topology.presets import hopper
from moecast.topology.presets.preset import Preset

HARDWARE = replace(
    hopper.H100,
    name="H200 SXM",
    memory_bytes=139 * 2**30,
    memory_Bps=4.8e12,
    sources=hopper.HARDWARE_SOURCES
    | {
        "memory_bytes": "what a CUDA program sees of the 141 GB of the datasheet: about 139 GiB",
        "memory_Bps": "NVIDIA H200 SXM datasheet: 4.8 TB/s",
    },
)

PRESET = Preset(
    name="dgx-h200",
    summary="8 x H200 141 GB on NVSwitch (NVLink 4), 8 x 400 Gb/s InfiniBand",
    domain=hopper.DGX,
    hardware=HARDWARE,
    fabric=Fabric(shape="rail", oversubscription=1, routing="spray"),
)
