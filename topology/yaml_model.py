"""The fields of a cluster file: what may stand where, and how its quantities are read.

A field is named as in Python without its unit, since the value carries one: `nic_Bps` is
`nic_bandwidth: 48.5 GB/s`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from moecast import units
from moecast.errors import MoecastError
from moecast.topology.fabric import FABRIC_RULE, parse_fabric

Quantity = Literal["bandwidth", "time", "size", "rate"]


@lru_cache(maxsize=4096)
def parse_quantity(text: str, kind: Quantity) -> float:
    """Read a quantity, keeping what was read: a cluster file repeats the same few thousands of times.

    Raises
    ------
    MoecastError
        As `moecast.units.parse`.
    """
    if len(text) > 40 or "**" in text or "^" in text:
        raise MoecastError("no number with a unit", value=text)
    return units.parse(text, kind)


def _reader(kind: Quantity) -> Callable[[object], float]:
    def read(value: object) -> float:
        try:
            return parse_quantity(value, kind) if isinstance(value, str) else units.parse(value, kind)
        except MoecastError as error:
            raise ValueError(error.rule) from None

    return read


def _read_fabric(value: object) -> object:
    if not isinstance(value, str):
        if value is not None and not isinstance(value, dict):
            raise ValueError(FABRIC_RULE)
        return value
    try:
        fabric = parse_fabric(value)
    except MoecastError as error:
        raise ValueError(error.rule) from None
    return {name: getattr(fabric, name) for name in FabricSection.model_fields}


Bandwidth = Annotated[float, BeforeValidator(_reader("bandwidth")), Field(gt=0)]
Time = Annotated[float, BeforeValidator(_reader("time"))]
Size = Annotated[float, BeforeValidator(_reader("size")), Field(gt=0)]
Rate = Annotated[float, BeforeValidator(_reader("rate")), Field(gt=0)]
Count = Annotated[int, Field(ge=1, strict=True)]
Index = Annotated[int, Field(ge=0, strict=True)]
Name = Annotated[str, Field(min_length=1, max_length=80, strict=True, pattern=r"^[^\x00-\x1f\x7f]+$")]  # it is printed


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def given(self) -> dict[str, Any]:
        """List the fields that the file sets, under their Python names."""
        return {name: value for name, value in self if name in self.model_fields_set and value is not None}


class HardwareSection(_Section):
    """`hardware:` starts from a preset's table, where one is named, and changes the fields that are given."""

    preset: Name | None = None
    name: Name | None = None
    sms: Count | None = None
    memory_bytes: Size | None = Field(default=None, alias="memory")
    memory_Bps: Bandwidth | None = Field(default=None, alias="memory_bandwidth")
    peak_flop_per_s: dict[str, Rate] | None = Field(default=None, alias="peak")
    efficiency: dict[str, float] | None = None
    kernel_launch_s: Time | None = Field(default=None, alias="kernel_launch")
    gemm_tile_rows: Count | None = None
    communication_sms: Index | None = None
    message_s: Time | None = Field(default=None, alias="message")
    collective_launch_s: Time | None = Field(default=None, alias="collective_launch")
    count_exchange_s: Time | None = Field(default=None, alias="count_exchange")
    barrier_s: Time | None = Field(default=None, alias="barrier")
    network_launch_s: Time | None = Field(default=None, alias="network_launch")
    in_switch_efficiency: float | None = None
    kernels: Name | None = None
    engine: Name | None = None
    sources: dict[str, str] | None = None


class DomainSection(_Section):
    """`domain:` starts from a preset's domain, where one is named, and changes the fields that are given."""

    hosts: Count | None = None
    gpus_per_host: Count | None = None
    nics_per_host: Count | None = None
    nvlink_Bps: Bandwidth | None = Field(default=None, alias="nvlink_bandwidth")
    nvlink_latency_s: Time | None = Field(default=None, alias="nvlink_latency")
    pcie_Bps: Bandwidth | None = Field(default=None, alias="pcie_bandwidth")
    pcie_latency_s: Time | None = Field(default=None, alias="pcie_latency")
    nic_Bps: Bandwidth | None = Field(default=None, alias="nic_bandwidth")
    nic_latency_s: Time | None = Field(default=None, alias="nic_latency")
    switch_latency_s: Time | None = Field(default=None, alias="switch_latency")
    nic_of_gpu: tuple[Index, ...] | None = None
    direct_nvlink: Annotated[bool, Field(strict=True)] | None = None
    sources: dict[str, str] | None = None


class FabricSection(_Section):
    """`fabric:` as a mapping; a string such as "leaf-spine:2" says the same."""

    shape: Literal["leaf-spine", "rail", "single-switch"]
    oversubscription: float = Field(default=1.0, ge=1, le=1000)
    nodes_per_leaf: Count | None = None
    routing: Literal["ecmp", "spray"] | None = None


class GpuEntry(_Section):
    """One of `gpus:`; its id is its place in the list, `index` its place in the domain (default: in file order)."""

    name: Name
    node: Index
    domain: Index
    index: Index | None = None


class NicEntry(_Section):
    """One of `nics:`."""

    name: Name
    node: Index


class SwitchEntry(_Section):
    """One of `switches:`."""

    name: Name
    tier: Literal["nvswitch", "leaf", "spine", "core"]


class LinkEntry(_Section):
    """One of `links:`: both directions with `between`, one with `from` and `to`."""

    between: tuple[Name, Name] | None = None
    source: Name | None = Field(default=None, alias="from")
    destination: Name | None = Field(default=None, alias="to")
    capacity_Bps: Bandwidth = Field(alias="bandwidth")
    latency_s: Time = Field(alias="latency")


class ClusterFile(_Section):
    """A cluster file: built from `preset` or `domain`, or listed as `gpus`, `nics`, `switches` and `links`."""

    name: Name | None = None
    preset: Name | None = None
    nodes: Count | None = None
    fabric: Annotated[FabricSection | None, BeforeValidator(_read_fabric)] = None
    domain: DomainSection | None = None
    hardware: HardwareSection | None = None
    routing: Literal["ecmp", "spray"] | None = None
    gpus: tuple[GpuEntry, ...] | None = None
    nics: tuple[NicEntry, ...] | None = None
    switches: tuple[SwitchEntry, ...] | None = None
    links: tuple[LinkEntry, ...] | None = None
