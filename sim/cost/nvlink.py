"""Nominal NVLink rates, of which costs of collectives give parts, so that they carry over to what nobody measured."""

from __future__ import annotations

from collections.abc import Mapping

NOMINAL_Bps: Mapping[str, float] = {
    "a100_sxm": 300e9,
    "h100_sxm": 450e9,
    "h200_sxm": 450e9,
    "h20": 450e9,
    "b200_sxm": 900e9,
    "b300_sxm": 900e9,
    "gb200": 900e9,
    "gb300": 900e9,
}
"""By GPU as `moecast.sim.cost.gpus` names them, one direction: half of what data sheets give for both (NVIDIA)."""

GENERATIONS: Mapping[str, tuple[str, ...]] = {
    "hopper": ("h100_sxm", "h200_sxm"),
    "blackwell": ("b200_sxm", "b300_sxm", "gb200"),
    "ampere": ("a100_sxm",),
}
"""Measured GPUs that share a generation of NVLink; fits of the others start at the first."""

USABLE_Bps: Mapping[str, float] = {
    gpu: 0.8 * rate if rate in (300e9, 900e9) else 370e9 for gpu, rate in NOMINAL_Bps.items()
}
"""What the presets of these GPUs have as a link's rate; of an A100, four fifths, as of Blackwell."""
