"""What the Hopper presets share: the hardware table of the SXM GPUs, and the links of a host with ConnectX-7.

The three costs of a collective are fitted together (tests/topology/test_fit.py repeats it): launch
plus barrier on one published row, their split estimated; then the cost of a copy by least squares
of the relative error on six rows, under time = path latency + collective_launch_s + copies leaving
* message_s + bytes leaving / rate.
The fit leaves between -5.5 % and +6 % on its own rows.
"""

from __future__ import annotations

from moecast.topology.hardware import Hardware
from moecast.topology.recipe import Domain

_NCCL_ROW = "NCCL 2.29.2 all-to-all, 64 KiB per rank on 8 x H200: 12.07 us (NVIDIA AIConfigurator tables)"
_DEEPEP_ROWS = (
    "DeepEP low-latency dispatch and combine on H800: 8 and 256 ranks over RDMA, 8 ranks over NVLink (its README)"
)

HARDWARE_SOURCES = {
    "sms": "NVIDIA H100 Tensor Core GPU architecture white paper: 132 SMs (SXM5)",
    "memory_bytes": "what a CUDA program sees of the 80 GB of the datasheet: 79.1 GiB",
    "memory_Bps": "NVIDIA H100 SXM datasheet: 3.35 TB/s",
    "peak_flop_per_s.bf16": "NVIDIA H100 SXM datasheet, dense: 989.4 TFLOP/s",
    "peak_flop_per_s.fp8": "NVIDIA H100 SXM datasheet, dense: 1978.9 TFLOP/s",
    "efficiency.gemm": "measured on one H200: 790 of 989.4 TFLOP/s, bf16, 8192 cubed, random data",
    "efficiency.grouped_gemm": "CUTLASS grouped GEMM on H100, 8 x (4096, 768, 2048): 650 of 989.4 TFLOP/s",
    "efficiency.attention": "FlashAttention-3 forward on H100, 4096 tokens, head size 128: 590 of 989.4 TFLOP/s "
    "(pytorch/benchmark 2391)",
    "efficiency.memory": "measured on one H200: 4.3 of 4.8 TB/s, device copy, read and written",
    "kernel_launch_s": "estimate: between two kernels of a CUDA graph, with their prologue and tail",
    "gemm_tile_rows": "the row alignment of DeepGEMM's grouped kernels, 128",
    "communication_sms": "DeepEP README: 24 SMs in the normal kernels (20 in DeepSeek-V3's training)",
    "message_s": f"fit on {_DEEPEP_ROWS}, given collective_launch_s",
    "collective_launch_s": f"fit, together with barrier_s, on {_NCCL_ROW}; the split of the two is an estimate",
    "count_exchange_s": f"fit on {_NCCL_ROW}: an exchange of counts is a small all-to-all",
    "barrier_s": f"fit, together with collective_launch_s, on {_NCCL_ROW}; the split of the two is an estimate",
    "network_launch_s": "0: no row that may be fitted says what NCCL adds over InfiniBand beside posts",
    "in_switch_efficiency": "fit on NCCL all-reduce (NVLS) on 8 x H200: 256 MiB in 1052.6 us, 8 GiB at 480 GB/s",
}

H100 = Hardware(
    name="H100 SXM",
    sms=132,
    memory_bytes=79.1 * 2**30,
    memory_Bps=3.35e12,
    peak_flop_per_s={"bf16": 989.4e12, "fp8": 1978.9e12},
    efficiency={"gemm": 0.798, "grouped_gemm": 0.657, "attention": 0.597, "memory": 0.896},
    kernel_launch_s=2e-6,
    gemm_tile_rows=128,
    communication_sms=24,
    message_s=29.8e-9,
    collective_launch_s=6.9e-6,
    count_exchange_s=12.07e-6,
    barrier_s=4e-6,
    in_switch_efficiency=0.836,
    kernels="fitted",
    sources=HARDWARE_SOURCES,
)

DOMAIN_SOURCES = {
    "nvlink_Bps": "NCCL's maintainers (NVIDIA/nccl-tests 212): NVLink 4 gives about 370 of its 450 GB/s per direction; "
    "P2P copies on H200 reach 396",
    "nvlink_latency_s": "estimate: 1 us from GPU to GPU over an NVSwitch, half of it on each of the two links",
    "pcie_Bps": "measured on one H200, PCIe 5 x16 host to device: 55.4 GB/s",
    "pcie_latency_s": "estimate",
    "nic_Bps": "NCCL's maintainers: one 400 Gb/s NIC (ConnectX-7, NDR) gives 48 to 49 of its 50 GB/s",
    "nic_latency_s": "estimate: NIC to NIC over one switch in 1.4 us, half of it on each of the two links",
    "switch_latency_s": "estimate: a Quantum-2 passes a packet in 0.15 to 0.3 us (vendor, resellers), and its cable",
}

DGX = Domain(
    gpus_per_host=8,
    nics_per_host=8,
    nvlink_Bps=370e9,
    nvlink_latency_s=0.5e-6,
    pcie_Bps=55.4e9,
    pcie_latency_s=0.4e-6,
    nic_Bps=48.5e9,
    nic_latency_s=0.7e-6,
    switch_latency_s=0.3e-6,
    sources=DOMAIN_SOURCES,
)
