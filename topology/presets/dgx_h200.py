"""DGX H200: eight H200 on NVSwitch, one ConnectX-7 (NDR InfiniBand) per GPU."""

from __future__ import annotations

from moecast.topology.fabric import Fabric
from moecast.topology.hardware import Hardware
from moecast.topology.presets.preset import Preset
from moecast.topology.recipe import Domain

HARDWARE = Hardware(
    name="H200 SXM",
    sms=132,
    memory_bytes=139 * 2**30,
    memory_Bps=4.8e12,
    peak_flop_per_s={"bf16": 989.4e12, "fp8": 1978.9e12},
    efficiency={"gemm": 0.798, "grouped_gemm": 0.657, "attention": 0.6, "memory": 0.896},
    kernel_launch_s=2e-6,
    gemm_tile_rows=128,
    communication_sms=24,
    message_s=30e-9,
    collective_launch_s=8e-6,
    count_exchange_s=12e-6,
    barrier_s=5e-6,
)

PRESET = Preset(
    name="dgx-h200",
    summary="8 x H200 141 GB on NVSwitch (NVLink 4), 8 x 400 Gb/s NDR InfiniBand",
    domain=Domain(
        gpus_per_host=8,
        nics_per_host=8,
        nvlink_Bps=370e9,
        nvlink_latency_s=0.5e-6,
        pcie_Bps=55.4e9,
        pcie_latency_s=0.4e-6,
        nic_Bps=48.5e9,
        nic_latency_s=0.7e-6,
        switch_latency_s=0.3e-6,
    ),
    hardware=HARDWARE,
    fabric=Fabric(shape="rail", oversubscription=1, routing="spray"),
    nodes_per_leaf={"leaf-spine": 2, "rail": 32},
)
