"""What the Blackwell presets share: the hardware tables of B200, B300 and GB300, and the links of their hosts.

What real kernels reach of the peaks, and the fixed costs, are taken from Hopper until they are
measured here.
"""

from __future__ import annotations

from dataclasses import replace

from moecast.topology.presets import gb200_nvl72, hopper

_SPARSE = "NVIDIA DGX {0} datasheet, dense: half of the sparse rate, of eight GPUs"

B200 = replace(
    gb200_nvl72.HARDWARE,
    name="B200 SXM",
    memory_bytes=180e9,
    peak_flop_per_s={"bf16": 2.25e15, "fp8": 4.5e15, "fp4": 9e15},
    sources={**gb200_nvl72.HARDWARE.sources}
    | {
        "memory_bytes": "NVIDIA DGX B200 datasheet: 1,440 GB of eight GPUs",
        "memory_Bps": "NVIDIA DGX B200 datasheet: 64 TB/s of eight GPUs",
        "peak_flop_per_s.bf16": "half of the FP8 rate",
        "peak_flop_per_s.fp8": _SPARSE.format("B200") + ", 72 PFLOP/s",
        "peak_flop_per_s.fp4": _SPARSE.format("B200") + ", 144 PFLOP/s",
    },
)

B300 = replace(
    B200,
    name="B300 SXM",
    memory_bytes=268e9,
    peak_flop_per_s={"bf16": 2.25e15, "fp8": 4.5e15, "fp4": 13.5e15},
    sources={**B200.sources}
    | {
        "sms": "estimate: as a B200",
        "memory_bytes": "AWS, EC2 P6-B300: 2,144 GB of eight GPUs, of 288 GB each nominal",
        "memory_Bps": "NVIDIA, Blackwell Ultra: 8 TB/s",
        "peak_flop_per_s.fp8": _SPARSE.format("B300") + ", 72 PFLOP/s",
        "peak_flop_per_s.fp4": "NVIDIA DGX B300 datasheet, dense: 108 PFLOP/s of eight GPUs",
    },
)

GB300 = replace(
    gb200_nvl72.HARDWARE,
    name="GB300",
    memory_bytes=279e9,
    peak_flop_per_s={"bf16": 2.5e15, "fp8": 5e15, "fp4": 15e15},
    sources={**gb200_nvl72.HARDWARE.sources}
    | {
        "sms": "estimate: as a GB200",
        "memory_bytes": "NVIDIA GB300 NVL72 datasheet: 20 TB of 72 GPUs",
        "memory_Bps": "NVIDIA GB300 NVL72 datasheet: 576 TB/s of 72 GPUs",
        "peak_flop_per_s.bf16": "NVIDIA GB300 NVL72 datasheet, half of the sparse 360 PFLOP/s of 72 GPUs",
        "peak_flop_per_s.fp8": "NVIDIA GB300 NVL72 datasheet, half of the sparse 720 PFLOP/s of 72 GPUs",
        "peak_flop_per_s.fp4": "NVIDIA GB300 NVL72 datasheet: 1,080 PFLOP/s dense of 72 GPUs",
    },
)

_NVLINK = {key: gb200_nvl72.DOMAIN.sources[key] for key in ("nvlink_Bps", "nvlink_latency_s")}

DGX_B200 = replace(hopper.DGX, nvlink_Bps=720e9, sources={**hopper.DOMAIN_SOURCES} | _NVLINK)

# PCIe of twice the lanes or rate stands before a NIC of 800 Gb/s, as before two of 400.
DGX_B300 = replace(
    DGX_B200,
    pcie_Bps=2 * hopper.DGX.pcie_Bps,
    nic_Bps=2 * hopper.DGX.nic_Bps,
    sources={**DGX_B200.sources}
    | {
        "pcie_Bps": "estimate: PCIe 6 x16, twice what an H200's PCIe 5 x16 gives",
        "nic_Bps": "estimate: one 800 Gb/s NIC (ConnectX-8) gives twice what a ConnectX-7 does",
    },
)
