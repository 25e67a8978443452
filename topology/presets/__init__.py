"""The presets, one file and one entry in `PRESETS` each."""

from moecast.topology.presets import dgx_h200
from moecast.topology.presets.preset import Preset

PRESETS: tuple[Preset, ...] = (dgx_h200.PRESET,)

__all__ = ["PRESETS", "Preset"]
