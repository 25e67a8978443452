"""The GPUs of measured kernel tables and their relatives, by the name of their folder, with their peaks.

A GPU without tables takes the parameters of its nearest relative and keeps its own peaks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from moecast.topology import Hardware
from moecast.topology.presets import blackwell, dgx_h200, gb200_nvl72, hopper

A100 = replace(
    hopper.H100,
    name="A100 SXM",
    sms=108,
    communication_sms=20,
    memory_bytes=79.1 * 2**30,
    memory_Bps=2.039e12,
    peak_flop_per_s={"bf16": 312e12},
    sources={
        key: source if source.startswith("estimate") else f"estimate: as on Hopper ({source})"
        for key, source in hopper.HARDWARE_SOURCES.items()
        if key != "peak_flop_per_s.fp8"
    }
    | {
        "sms": "NVIDIA A100 Tensor Core GPU architecture white paper: 108 SMs",
        "memory_Bps": "NVIDIA A100 SXM 80 GB datasheet: 2,039 GB/s",
        "peak_flop_per_s.bf16": "NVIDIA A100 datasheet, dense: 312 TFLOP/s",
    },
)

H20 = replace(
    dgx_h200.HARDWARE,
    name="H20",
    sms=78,
    memory_bytes=95.6 * 2**30,
    memory_Bps=4e12,
    peak_flop_per_s={"bf16": 148e12, "fp8": 296e12},
    sources={**dgx_h200.HARDWARE.sources}
    | {
        "sms": "as resellers and the press give it (NVIDIA publishes no datasheet): 78 SMs",
        "memory_bytes": "estimate: what a CUDA program sees of 96 GB",
        "memory_Bps": "as sms: 4.0 TB/s",
        "peak_flop_per_s.bf16": "as sms, dense: 148 TFLOP/s",
        "peak_flop_per_s.fp8": "as sms, dense: 296 TFLOP/s",
    },
)

GPUS: Mapping[str, Hardware] = {
    "a100_sxm": A100,
    "h100_sxm": hopper.H100,
    "h200_sxm": dgx_h200.HARDWARE,
    "h20": H20,
    "b200_sxm": blackwell.B200,
    "b300_sxm": blackwell.B300,
    "gb200": gb200_nvl72.HARDWARE,
    "gb300": blackwell.GB300,
}

# Nearest first: the same chip with another memory, then the same generation, then the next one
# down.
_RELATIVES: Mapping[str, tuple[str, ...]] = {
    "a100_sxm": ("h100_sxm", "h200_sxm", "b200_sxm", "gb200"),
    "h100_sxm": ("h200_sxm", "h20", "a100_sxm", "b200_sxm", "gb200"),
    "h200_sxm": ("h100_sxm", "h20", "a100_sxm", "b200_sxm", "gb200"),
    "h20": ("h200_sxm", "h100_sxm", "a100_sxm", "b200_sxm", "gb200"),
    "b200_sxm": ("gb200", "b300_sxm", "gb300", "h200_sxm"),
    "b300_sxm": ("gb300", "b200_sxm", "gb200", "h200_sxm"),
    "gb200": ("b200_sxm", "gb300", "b300_sxm", "h200_sxm"),
    "gb300": ("b300_sxm", "gb200", "b200_sxm", "h200_sxm"),
}

_NAMES = {hardware.name: key for key, hardware in GPUS.items()} | {"H800 SXM": "h100_sxm"}


def gpu_key(hardware: Hardware) -> str:
    """The folder name of a GPU; of the most similar one where its name is unknown.

    By name first; else by what it multiplies (FP4: Blackwell, FP8: Hopper, else Ampere) and the
    memory's bandwidth.
    """
    if hardware.name in _NAMES:
        return _NAMES[hardware.name]
    peaks = hardware.peak_flop_per_s
    alike = [key for key, other in GPUS.items() if set(other.peak_flop_per_s) == set(peaks)] or list(GPUS)
    return min(alike, key=lambda key: abs(GPUS[key].memory_Bps / hardware.memory_Bps - 1))


def nearest(gpu: str, among: Collection[str]) -> str:
    """Of the GPUs in `among`, itself or its nearest relative.

    Raises
    ------
    ValueError
        An unknown GPU, or no relative among them.
    """
    if gpu in among:
        return gpu
    if gpu not in _RELATIVES:
        raise ValueError(f"gpu {gpu!r}: one of {', '.join(GPUS)}")
    for other in _RELATIVES[gpu]:
        if other in among:
            return other
    raise ValueError(f"gpu {gpu!r} has no relative among {', '.join(sorted(among)) or 'none'}")


# L2 by GPU: NVIDIA's architecture white papers (A100, H100), device queries (H20, B200); the rest
# as their relatives.
L2_BYTES: Mapping[str, float] = {
    "a100_sxm": 40e6,
    "h100_sxm": 50e6,
    "h200_sxm": 50e6,
    "h20": 60e6,
    "b200_sxm": 126e6,
    "b300_sxm": 126e6,
    "gb200": 126e6,
    "gb300": 126e6,
}
