"""H800 node: an H100 whose NVLink is cut to 400 GB/s in both directions together; DeepSeek's published numbers."""

from __future__ import annotations

from dataclasses import replace

from moecast.topology.fabric import Fabric
from moecast.topology.presets import hopper
from moecast.topology.presets.preset import Preset

DOMAIN = replace(
    hopper.DGX,
    nvlink_Bps=160e9,
    sources=hopper.DOMAIN_SOURCES
    | {"nvlink_Bps": "DeepSeek (DeepEP README and issue 16): about 160 of the H800's 200 GB/s per direction"},
)

PRESET = Preset(
    name="h800-node",
    summary="8 x H800 80 GB on NVSwitch (NVLink 4 at 400 GB/s), 8 x 400 Gb/s InfiniBand",
    domain=DOMAIN,
    hardware=replace(hopper.H100, name="H800 SXM"),
    fabric=Fabric(shape="rail", oversubscription=1, routing="spray"),
    nvlinks=8,
)
