"""GB200 NVL72: one NVLink domain of 72 Blackwell GPUs over 18 hosts, one ConnectX-7 per GPU."""

from __future__ import annotations

from dataclasses import replace

from moecast.topology.fabric import Fabric
from moecast.topology.presets import hopper
from moecast.topology.presets.preset import Preset

HARDWARE = replace(
    hopper.H100,
    name="GB200",
    sms=148,
    memory_bytes=186e9,
    memory_Bps=8e12,
    in_switch_efficiency=0.598,
    peak_flop_per_s={"bf16": 2.5e15, "fp8": 5e15, "fp4": 10e15},
    sources={
        key: source if source.startswith("estimate") else f"estimate: as on Hopper ({source})"
        for key, source in hopper.HARDWARE_SOURCES.items()
    }
    | {
        "sms": "CUDA device query of a B200: 148 SMs (pytorch/ao 4002)",
        "memory_bytes": "NVIDIA GB200 NVL72 datasheet: 186 GB per GPU",
        "in_switch_efficiency": "fit on NCCL 2.26.2 all-reduce (NVLS) of 8 GiB on 72 x GB200: 834.6 GB/s (CoreWeave)",
        "memory_Bps": "NVIDIA GB200 NVL72 datasheet: 8 TB/s per GPU",
        "peak_flop_per_s.bf16": "NVIDIA GB200 NVL72 datasheet, half of the sparse 5 PFLOP/s",
        "peak_flop_per_s.fp8": "NVIDIA GB200 NVL72 datasheet, half of the sparse 10 PFLOP/s",
        "peak_flop_per_s.fp4": "NVIDIA GB200 NVL72 datasheet, half of the sparse 20 PFLOP/s",
    },
)

DOMAIN = replace(
    hopper.DGX,
    hosts=18,
    gpus_per_host=4,
    nics_per_host=4,
    nvlink_Bps=720e9,
    sources=hopper.DOMAIN_SOURCES
    | {
        "nvlink_Bps": "NCCL's own table (src/graph/topo.h): 18 links of 40.1 GB/s usable, 720 of NVLink 5's 900 GB/s "
        "per direction; peer copies reach about 770 (Azure/AI-benchmarking-guide 7)",
        "nvlink_latency_s": "estimate: as NVLink 4 inside a node",
        "pcie_Bps": "estimate: as PCIe 5 x16 of an H200 host, 55.4 GB/s",
    },
)

PRESET = Preset(
    name="gb200-nvl72",
    summary="72 x GB200 186 GB in one NVLink 5 domain of 18 hosts, 72 x 400 Gb/s InfiniBand",
    domain=DOMAIN,
    hardware=HARDWARE,
    fabric=Fabric(shape="rail", oversubscription=1, routing="spray"),
    # Leaf-spine: half a rack a leaf, 36 of its 64 ports. Rail: a rack's 18 hosts share four leaves.
    nodes_per_leaf={"leaf-spine": 9, "rail": 18},
)
