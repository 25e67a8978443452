"""Fitted costs on the links of a cluster: what NCCL's protocols and engines' kernels need there.

`moecast.sim.cost.collectives` says seconds of a collective that has a domain to itself. Here the
same numbers become protocols, whose flows share links with others: starts, hops, and bytes on the
wire for a byte of data, so that a collective by itself takes what that family says. Used where the
hardware table asks for fitted kernels, for groups inside one domain.

A table's NVLink rate need not be its preset's: bytes on the wire are those of the preset's rate, so
that half of the links give half of the speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moecast.sim.collectives.protocols import Protocol
from moecast.sim.cost import collectives as cost
from moecast.sim.cost.gpus import gpu_key
from moecast.sim.cost.nvlink import NOMINAL_Bps, USABLE_Bps

if TYPE_CHECKING:
    from moecast.topology import Hardware

TANGENTS_bytes = tuple(4.0**power for power in range(9, 17))
"""Sizes at which the growing rate of a large all-to-all is met exactly, 256 KiB to 4 GiB."""


def is_fitted(hardware: Hardware) -> bool:
    """Whether a hardware table asks for fitted costs rather than for links alone."""
    return hardware.kernels != "roofline"


def ring_protocols(hardware: Hardware, operation: str, ranks: int) -> Iterator[Protocol]:
    """NCCL's protocols for a ring of some ranks: LL, LL128, Simple."""
    p = nccl_of(hardware)
    steps = (2 if operation == "all-reduce" else 1) * (ranks - 1)
    own = (steps + p.own) / steps
    for name, start_s, hop_s, part in (
        ("LL", p.low_start_s, p.low_hop_s, p.low_part),
        ("LL128", p.mid_start_s, p.mid_hop_s, p.mid_part),
        ("Simple", p.high_start_s, p.high_hop_s, p.high_part),
    ):
        yield _protocol(hardware, name, start_s, own / part, hop_s=hop_s)


def gathered_wire(hardware: Hardware, ranks: int) -> float:
    """Bytes on a link for a byte that each of some ranks gets of an all-gather, by NCCL's protocol of most bytes/s."""
    p = nccl_of(hardware)
    return wire_of(hardware, (ranks - 1 + p.own) / (ranks - 1) / p.high_part)


def gathered_setup_s(hardware: Hardware, ranks: int, size_bytes: float) -> float:
    """What an all-gather or a reduce-scatter takes beside `gathered_wire`'s time of its bytes.

    NCCL takes the protocol that is done first. Those of few bytes start sooner and move less, so
    that what is beside the bytes at full rate grows with the size, up to the start of the protocol
    that has it.
    """
    p, link_Bps = nccl_of(hardware), NOMINAL_Bps[gpu_key(hardware)]
    whole_s = float(cost.nccl_seconds(p, "all-gather", ranks, size_bytes, link_Bps=link_Bps))
    return whole_s - (ranks - 1 + p.own) / ranks * size_bytes / link_Bps / p.high_part


def in_switch_protocol(hardware: Hardware) -> Protocol:
    """NCCL's all-reduce in the switch; the switch's own efficiency is the hardware table's, where that is less."""
    p = nccl_of(hardware)
    return _protocol(hardware, "NVLS", p.switch_start_s, hardware.in_switch_efficiency / p.switch_part)


def all_to_all_protocols(hardware: Hardware, ranks: int) -> Iterator[Protocol]:
    """NCCL's all-to-all of few bytes, then of many: tangents of its time, whose least is close to it."""
    p = nccl_of(hardware)
    yield _protocol(hardware, "LL", p.pair_start_s, 1 / ((ranks - 1) * p.pair_part))
    own = (ranks - 1 + p.pairs_own) / (ranks - 1)
    for size in TANGENTS_bytes:
        # sqrt(ramp · v) touched at v = size: half of it is a constant, and half of its rise is the
        # slope.
        ramp_bytes = (p.pairs_ramp_bytes * size) ** 0.5
        start_s = p.pairs_start_s + ramp_bytes / 2 / (p.pairs_part * NOMINAL_Bps[gpu_key(hardware)])
        yield _protocol(hardware, "Simple", start_s, own * (1 + ramp_bytes / size / 2) / p.pairs_part)


def engine_protocols(hardware: Hardware, ranks: int) -> Iterator[tuple[str, Protocol]]:
    """The engine's own all-reduce kernels by the kind that they are, in one shot and in two."""
    p = cost.find_parameters(gpu_key(hardware), hardware.engine).parameters
    away, each_s = ranks - 1, (ranks - 1) * p.rank_s
    yield (
        "one-shot",
        _protocol(hardware, hardware.engine, p.start_s + each_s, (away + cost.OWN_OF_ONE) / away / p.one_part),
    )
    yield (
        "two-shot",
        _protocol(
            hardware, hardware.engine, 2 * p.start_s + each_s, (2 * away + cost.OWN_OF_TWO) / (2 * away) / p.two_part
        ),
    )


def nccl_of(hardware: Hardware) -> cost.NcclParameters:
    """NCCL's parameters on a GPU, or on its nearest relative."""
    found: cost.NcclParameters = cost.find_parameters(gpu_key(hardware), "nccl").parameters
    return found


def wire_of(hardware: Hardware, per_nominal: float) -> float:
    """Bytes on a link of the preset's rate for a byte that takes `per_nominal` of the time at the nominal rate."""
    gpu = gpu_key(hardware)
    return max(1.0, per_nominal * USABLE_Bps[gpu] / NOMINAL_Bps[gpu])


def _protocol(hardware: Hardware, name: str, start_s: float, per_nominal: float, *, hop_s: float = 0.0) -> Protocol:
    return Protocol(name=name, start_s=start_s, near_hop_s=hop_s, near_wire=wire_of(hardware, per_nominal))
