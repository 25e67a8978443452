"""The presets, one file and one entry in `PRESETS` each."""

from __future__ import annotations

from pathlib import Path

from moecast.errors import MoecastError
from moecast.topology.presets import (
    dgx_b200,
    dgx_b300,
    dgx_h100,
    dgx_h200,
    gb200_nvl72,
    gb300_nvl72,
    h800_node,
    hgx_h100_roce,
    p5,
    p5en,
    p6_b300,
)
from moecast.topology.presets.preset import Preset

PRESETS: tuple[Preset, ...] = (
    dgx_h100.PRESET,
    dgx_h200.PRESET,
    h800_node.PRESET,
    hgx_h100_roce.PRESET,
    dgx_b200.PRESET,
    dgx_b300.PRESET,
    p5.PRESET,
    p5en.PRESET,
    p6_b300.PRESET,
    gb200_nvl72.PRESET,
    gb300_nvl72.PRESET,
)


def list_presets() -> tuple[Preset, ...]:
    """List the presets, in the order they are shown."""
    return PRESETS


def find_preset(name: str, *, file: str | Path | None = None, field: str = "cluster") -> Preset:
    """Find the preset called `name`; `file` and `field` are named in the error.

    Raises
    ------
    MoecastError
        There is none.
    """
    for preset in PRESETS:
        if preset.name == name:
            return preset
    known = ", ".join(preset.name for preset in PRESETS)
    raise MoecastError(
        f"no such preset; there are {known}, or name a file that ends in .yaml", file=file, field=field, value=name
    )


__all__ = ["PRESETS", "Preset", "find_preset", "list_presets"]
