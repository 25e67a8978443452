"""GB300 NVL72: one NVLink domain of 72 Blackwell Ultra GPUs over 18 hosts, one ConnectX-8 of 800 Gb/s per GPU."""

from __future__ import annotations

from dataclasses import replace

from moecast.topology.presets import blackwell, gb200_nvl72
from moecast.topology.presets.preset import Preset

DOMAIN = replace(
    gb200_nvl72.DOMAIN,
    pcie_Bps=blackwell.DGX_B300.pcie_Bps,
    nic_Bps=blackwell.DGX_B300.nic_Bps,
    sources={**gb200_nvl72.DOMAIN.sources} | {key: blackwell.DGX_B300.sources[key] for key in ("pcie_Bps", "nic_Bps")},
)

PRESET = Preset(
    name="gb300-nvl72",
    summary="72 x GB300 279 GB in one NVLink 5 domain of 18 hosts, 72 x 800 Gb/s InfiniBand",
    domain=DOMAIN,
    hardware=blackwell.GB300,
    fabric=gb200_nvl72.PRESET.fabric,
    nodes_per_leaf=gb200_nvl72.PRESET.nodes_per_leaf,
)
