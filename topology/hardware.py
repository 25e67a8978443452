"""The hardware table: what one kind of GPU can do, with the source of every number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

ELEMENT_TYPES = ("bf16", "fp8", "fp4")
KERNELS = ("roofline", "fitted")
TABLES = "tables:"
"""Before the folder of measured tables that prices kernels."""
NO_NUMBERS = ("name", "kernels", "engine", "copy_cost", "sources")
FIXED_COSTS = (
    "kernel_launch_s",
    "message_s",
    "collective_launch_s",
    "count_exchange_s",
    "barrier_s",
    "network_launch_s",
)
EFFICIENCIES = ("gemm", "grouped_gemm", "attention", "memory")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One kind of GPU in its host: peaks, the part of them that real kernels reach, and fixed costs.

    Parameters
    ----------
    name
        The GPU, as its vendor calls it.
    sms
        Streaming multiprocessors.
    memory_bytes, memory_Bps
        Device memory that a program can use, and its peak bandwidth.
    peak_flop_per_s
        Dense peak by element type: "bf16", "fp8", "fp4" where it exists.
    efficiency
        Part of the peak that is reached: "gemm", "grouped_gemm" and "attention" of the FLOP/s,
        "memory" of the bandwidth.
    kernel_launch_s
        Time between two kernels of one stream.
    gemm_tile_rows
        Tokens per tile of a grouped GEMM; an expert's tokens are rounded up to it.
    communication_sms
        SMs that the normal dispatch and combine kernels take from compute.
    message_s
        Cost of one copy at its sender, in the low-latency kernels: added to the time that its bytes
        take on the first link of its path, whether NIC or NVLink, and not hidden behind it.
    collective_launch_s
        Fixed cost of one dispatch or combine.
    count_exchange_s
        Exchange of token counts before a normal dispatch.
    barrier_s
        A barrier over the ranks of a group.
    network_launch_s
        What NCCL adds before the first byte of a collective that leaves its domain: the hosts'
        proxies and what drives the cards. 0 where nobody measured it.
    in_switch_efficiency
        Part of the NVLink rate at which the domain's switches add up and multicast; 0 where they
        cannot.
    kernels
        Who prices kernels: `roofline` (the `efficiency` of this table), `fitted` (parameters per
        kind of kernel that were fitted on measured ones), or `tables:DIR` (measured tables in a
        folder, fitted parameters beside).
    engine
        Whose kernels run, by the name of a serving engine; `neutral`: none in particular.
    copy_cost
        What a copy costs its sender, by the costs that are fitted: times what they say. No fact of
        a GPU: it asks what cheaper copies would save, where `message_s` is not read.
    sources
        Where each of the numbers above comes from, by field, or by "field.key" in a mapping.

    Raises
    ------
    ValueError
        A number out of its range, or an unknown key.
    """

    name: str
    sms: int
    memory_bytes: float
    memory_Bps: float
    peak_flop_per_s: Mapping[str, float] = field(hash=False)
    efficiency: Mapping[str, float] = field(hash=False)
    kernel_launch_s: float
    gemm_tile_rows: int
    communication_sms: int
    message_s: float
    collective_launch_s: float
    count_exchange_s: float
    barrier_s: float
    network_launch_s: float = 0.0
    in_switch_efficiency: float = 0.0
    kernels: str = "roofline"
    engine: str = "neutral"
    copy_cost: float = 1.0
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("sms", "memory_bytes", "memory_Bps", "gemm_tile_rows"):
            _check(name, getattr(self, name), 0 < getattr(self, name) < float("inf"), "must be positive")
        for name in FIXED_COSTS:
            _check(name, getattr(self, name), 0 <= getattr(self, name) < float("inf"), "must not be negative")
        _check("in_switch_efficiency", self.in_switch_efficiency, 0 <= self.in_switch_efficiency <= 1, "must be 0 to 1")
        _check("copy_cost", self.copy_cost, 0 <= self.copy_cost < float("inf"), "must not be negative")
        own = self.kernels.startswith(TABLES) and self.kernels != TABLES
        _check(
            "kernels", self.kernels, own or self.kernels in KERNELS, f"is not one of {', '.join(KERNELS)}, tables:DIR"
        )
        _check("communication_sms", self.communication_sms, 0 <= self.communication_sms < self.sms, "must be below sms")
        for key, value in self.peak_flop_per_s.items():
            _check(f"peak_flop_per_s.{key}", value, key in ELEMENT_TYPES, f"is not one of {', '.join(ELEMENT_TYPES)}")
            _check(f"peak_flop_per_s.{key}", value, 0 < value < float("inf"), "must be positive")
        _check("peak_flop_per_s", dict(self.peak_flop_per_s), "bf16" in self.peak_flop_per_s, 'needs "bf16"')
        _check(
            "efficiency",
            dict(self.efficiency),
            set(self.efficiency) == set(EFFICIENCIES),
            f"needs exactly {', '.join(EFFICIENCIES)}",
        )
        for key, value in self.efficiency.items():
            _check(f"efficiency.{key}", value, 0 < value <= 1, "must be above 0 and at most 1")

    def numbers(self) -> dict[str, float]:
        """List every number of the table by field, mappings as "field.key"."""
        table: dict[str, float] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in NO_NUMBERS:
                continue
            if isinstance(value, Mapping):
                table |= {f"{item.name}.{key}": number for key, number in value.items()}
            else:
                table[item.name] = value
        return table


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} = {value!r} {rule}")
