"""The presets, one file and one entry in `PRESETS` each."""

from moecast.topology.presets import dgx_h100, dgx_h200, gb200_nvl72, h800_node, hgx_h100_roce
from moecast.topology.presets.preset import Preset

PRESETS: tuple[Preset, ...] = (
    dgx_h100.PRESET,
    dgx_h200.PRESET,
    h800_node.PRESET,
    hgx_h100_roce.PRESET,
    gb200_nvl72.PRESET,
)

__all__ = ["PRESETS", "Preset"]
