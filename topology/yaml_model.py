"""The fields of a cluster file: what may stand where, and how its quantities are read.

A field is named as in Python without its unit, since the value carries one: `nic_Bps` is `nic_bandwidth: 48.5 GB/s`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from moecast import units
from moecast.errors import MoecastError

Quantity = Literal["bandwidth", "time", "size", "rate"]


def _reader(kind: Quantity) -> Callable[[object], float]:
    @lru_cache(maxsize=4096)
    def read(text: object) -> float:
        try:
            if isinstance(text, str) and (len(text) > 40 or "**" in text or "^" in text):
                raise MoecastError("too long or too clever for a quantity")
            return units.parse(text, kind)
        except MoecastError as error:
            raise ValueError(error.rule) from None

    def read_quantity(text: object) -> float:
        return read(text) if isinstance(text, str) else units_error(kind)

    return read_quantity


def units_error(kind: Quantity) -> float:
    """Say how a quantity is written, in the words of `moecast.units`."""
    try:
        return units.parse(None, kind)
    except MoecastError as error:
        raise ValueError(error.rule) from None


Bandwidth = Annotated[float, BeforeValidator(_reader("bandwidth")), Field(gt=0)]
Time = Annotated[float, BeforeValidator(_reader("time"))]
Size = Annotated[float, BeforeValidator(_reader("size")), Field(gt=0)]
Rate = Annotated[float, BeforeValidator(_reader("rate")), Field(gt=0)]
Count = Annotated[int, Field(ge=1, strict=True)]
Index = Annotated[int, Field(ge=0, strict=True)]
Name = Annotated[str, Field(min_length=1, max_length=80, strict=True)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def given(self) -> dict[str, Any]:
        """The fields that the file sets, under their Python names."""
        return {
            info.alias or name: getattr(self, name)
            for name, info in type(self).model_fields.items()
            if name in self.model_fields_set
        }


class HardwareSection(_Section):
    """`hardware:` starts from a preset's table, where one is named, and changes the fields that are given."""

    preset: Name | None = None
    name: Name | None = None
    sms: Count | None = None
    memory: Size | None = None
    memory_bandwidth: Bandwidth | None = None
    peak: dict[str, Rate] | None = None
    efficiency: dict[str, float] | None = None
    kernel_launch: Time | None = None
    gemm_tile_rows: Count | None = None
    communication_sms: Index | None = None
    message: Time | None = None
    collective_launch: Time | None = None
    count_exchange: Time | None = None
    barrier: Time | None = None
    sources: dict[str, str] | None = None


class DomainSection(_Section):
    """`domain:` starts from a preset's domain, where one is named, and changes the fields that are given."""

    hosts: Count | None = None
    gpus_per_host: Count | None = None
    nics_per_host: Count | None = None
    nvlink_bandwidth: Bandwidth | None = None
    nvlink_latency: Time | None = None
    pcie_bandwidth: Bandwidth | None = None
    pcie_latency: Time | None = None
    nic_bandwidth: Bandwidth | None = None
    nic_latency: Time | None = None
    switch_latency: Time | None = None
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
    bandwidth: Bandwidth
    latency: Time


class ClusterFile(_Section):
    """A cluster file: built from `preset` or `domain`, or listed as `gpus`, `nics`, `switches` and `links`."""

    name: Name | None = None
    preset: Name | None = None
    nodes: Count | None = None
    fabric: Name | FabricSection | None = None
    domain: DomainSection | None = None
    hardware: HardwareSection | None = None
    routing: Literal["ecmp", "spray"] | None = None
    gpus: tuple[GpuEntry, ...] | None = None
    nics: tuple[NicEntry, ...] | None = None
    switches: tuple[SwitchEntry, ...] | None = None
    links: tuple[LinkEntry, ...] | None = None
