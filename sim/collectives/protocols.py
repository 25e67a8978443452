"""How a library moves the bytes of one hop: what a hop costs, and how many bytes on the wire carry one of data.

The links alone are `PLAIN`: what lean kernels in symmetric memory reach. NCCL has several
protocols, and its own model of its time is latency + bytes / bandwidth for each pair of algorithm
and protocol (NVIDIA/nccl, src/graph/tuning.cc); the costs of a hop and of NCCL's start below are
that model's, but for those that are said to be fitted. The rows stand in
`benchmarks/collectives.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One way to move bytes from a rank to the next.

    Parameters
    ----------
    name
        How outputs call it.
    start_s
        Before the first byte moves; None: what the hardware table says of a collective's launch and
        a barrier.
    near_hop_s, far_hop_s
        A whole hop over NVLink, and at least so much over the network; None: the latency of its
        path.
    near_wire, far_wire
        Bytes that pass the links for each byte of data, over NVLink, and over the network.

    Raises
    ------
    ValueError
        A time below nothing, or less on the wire than there is data.
    """

    name: str
    start_s: float | None = None
    near_hop_s: float | None = None
    far_hop_s: float | None = None
    near_wire: float = 1.0
    far_wire: float = 1.0

    def __post_init__(self) -> None:
        for name in ("start_s", "near_hop_s", "far_hop_s"):
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 0 to 1 second")
        for name in ("near_wire", "far_wire"):
            if not 1 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")


PLAIN = Protocol(name="plain")

NETWORK_POST_s = 1e-6
"""What a host's proxy takes to post a message to another domain, one after the other: the network overhead of NCCL's
own model (1 us on Intel hosts, 2 on AMD's; NVIDIA/nccl, `getNetOverhead` in src/graph/tuning.cc). Not fitted."""

# Fitted: `start_s` and `near_wire`, by least relative errors, on NCCL's rows up to 1 MiB marked fit
# (8 GPUs, NVLink 4): all-reduce 64 KiB 19.89 us, 1 MiB 34.65 and 35.6 us, reduce-scatter 1 MiB 29.3
# us. NCCL says 6.6 us.
LOW_LATENCY = Protocol(name="LL", start_s=11.7e-6, near_hop_s=0.6e-6, far_hop_s=2.7e-6, near_wire=3.37, far_wire=8.0)
LOW_LATENCY_128 = Protocol(
    name="LL128", start_s=14e-6, near_hop_s=1.9e-6, far_hop_s=4e-6, near_wire=1 / 0.92, far_wire=1 / 0.92
)
# Fitted: `near_wire`, on reduce-scatter of 512 MiB, 1420 us (fit, 8 x H100).
SIMPLE = Protocol(name="Simple", start_s=8.4e-6, near_hop_s=3.4e-6, far_hop_s=14e-6, near_wire=1.093)

# Fitted together with the hardware table's `in_switch_efficiency` of Hopper: all-reduce of 256 MiB,
# 1052.6 us, and of 8 GiB, 480 GB/s (both fit, 8 x H200). NCCL says 25 us; what its channels take to
# fill is in it.
IN_SWITCH = Protocol(name="NVLS", start_s=75.3e-6)

RING_PROTOCOLS = (LOW_LATENCY, LOW_LATENCY_128, SIMPLE)
TREE_PROTOCOLS = (
    Protocol(name="LL", start_s=11.7e-6, near_hop_s=0.6e-6, far_hop_s=5e-6, near_wire=3.8, far_wire=8.0),
    Protocol(name="LL128", start_s=14e-6, near_hop_s=1.25e-6, far_hop_s=8.5e-6, near_wire=9 / 7, far_wire=1 / 0.915),
    Protocol(name="Simple", start_s=8.4e-6, near_hop_s=4e-6, far_hop_s=14e-6, near_wire=1 / 0.92, far_wire=1 / 0.92),
)
