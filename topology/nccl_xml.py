"""NCCL's own view of a host: the XML that `NCCL_TOPO_DUMP_FILE` writes.

CPUs hold PCIe bridges, these hold GPUs (with their NVLinks) and NICs (with their speed). No entity
and no document type is read, nothing outside the file, and depth and number of elements are
limited.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat  # entities and document types are refused below

from moecast.errors import MoecastError
from moecast.topology.host import MOST_GPUS, MOST_NICS, HostTopology

MOST_DEPTH, MOST_ELEMENTS = 32, 20_000
SWITCH_CLASS = "0x068000"  # the PCI class of an NVSwitch
_SPEED = re.compile(r"\s*([0-9]{1,3}(?:\.[0-9]{1,3})?) *GT/s.*")


@dataclass(slots=True, kw_only=True)
class _Device:
    """A GPU or NIC: where it hangs, and its attributes."""

    cpu: str
    bridges: tuple[str, ...]
    bus: str
    pcie: float
    given: Mapping[str, str]
    links: list[Mapping[str, str]] = field(default_factory=list)


class _Reader:
    """Collects devices while expat walks the file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.path: list[tuple[str, dict[str, str]]] = []
        self.elements = 0
        self.hosts: set[str] = set()
        self.gpus: list[_Device] = []
        self.nics: list[_Device] = []

    def start(self, name: str, given: dict[str, str]) -> None:
        self.elements += 1
        if self.elements > MOST_ELEMENTS or len(self.path) >= MOST_DEPTH:
            rule = f"more than {MOST_ELEMENTS} elements, or {MOST_DEPTH} inside each other: no topology of a host"
            raise MoecastError(rule, file=self.file)
        if not self.path and name != "system":
            raise MoecastError("a topology of NCCL starts with <system>", file=self.file, field=f"<{name[:40]}>")
        if name == "cpu":
            self.hosts.add(given.get("host_hash", ""))
        elif name == "gpu":
            self.gpus.append(self._device(given))
        elif name == "net":
            self.nics.append(self._device(given))
        elif name == "nvlink" and self.path[-1][0] == "gpu":
            self.gpus[-1].links.append(given)
        self.path.append((name, given))

    def end(self, _: str) -> None:
        self.path.pop()

    def refuse(self, *_: object) -> None:
        raise MoecastError("document types and entities are not read", file=self.file)

    def _device(self, given: dict[str, str]) -> _Device:
        cpus = [above.get("numaid", "") for name, above in self.path if name == "cpu"]
        pcis = [above for name, above in self.path if name == "pci"]
        buses = tuple(above.get("busid", "") for above in pcis)
        return _Device(
            cpu=cpus[-1] if cpus else "",
            bridges=buses[:-1],
            bus=buses[-1] if buses else "",
            pcie=_pcie(pcis[-1]) if pcis else 0.0,
            given=given,
        )


def parse_nccl_xml(data: bytes, file: Path) -> HostTopology:
    """Read the file.

    Raises
    ------
    MoecastError
        It is no XML, or holds a document type, another root, several hosts, no GPU, numbers out of
        their range, or GPUs that do not reach each other over NVLink, or over different numbers of
        them.
    """
    reader = _Reader(file)
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.EntityDeclHandler = reader.refuse
    parser.ExternalEntityRefHandler = reader.refuse  # type: ignore[assignment]  # it raises
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise MoecastError(f"is not XML ({' '.join(str(error).split())})", file=file) from error
    if len(reader.hosts) > 1:
        raise MoecastError(f"describes {len(reader.hosts)} hosts: give the dump of one", file=file)
    gpus = sorted(reader.gpus, key=lambda gpu: _number(gpu.given, "dev", 10_000, file))
    if not gpus or len(gpus) > MOST_GPUS or len(reader.nics) > MOST_NICS:
        rule = f"{len(gpus)} GPUs and {len(reader.nics)} NICs: a host has 1 to {MOST_GPUS} and at most {MOST_NICS}"
        raise MoecastError(rule, file=file)
    switch, pair = _nvlinks(gpus, file)
    sms = {int(_number(gpu.given, "sm", 1000, file)) for gpu in gpus}
    return HostTopology(
        gpus=tuple(f"GPU{gpu.given['dev']}" for gpu in gpus),
        nics=tuple(nic.given.get("name", f"net{index}")[:40] for index, nic in enumerate(reader.nics)),
        level_GN=tuple(tuple(_level(gpu, nic) for nic in reader.nics) for gpu in gpus),
        switch_links=switch,
        pair_links=pair,
        numa_G=tuple(gpu.cpu for gpu in gpus),
        line_Bps_N=tuple(_number(nic.given, "speed", 10**8, file) * 1e6 / 8 for nic in reader.nics),
        pcie_G=tuple(gpu.pcie for gpu in gpus),
        pcie_N=tuple(nic.pcie for nic in reader.nics),
        sm=sms.pop() if len(sms) == 1 else None,
    )


def _level(gpu: _Device, nic: _Device) -> str:
    """How far the two are, as `nvidia-smi topo -m` says it."""
    common = 0
    for ours, theirs in zip(gpu.bridges, nic.bridges, strict=False):
        if ours != theirs:
            break
        common += 1
    if common:
        return "PIX" if common == len(gpu.bridges) == len(nic.bridges) else "PXB"
    if gpu.bus and gpu.bus == nic.bus:
        return "PIX"
    return "PHB" if gpu.cpu == nic.cpu else "SYS"


def _nvlinks(gpus: list[_Device], file: Path) -> tuple[int, int]:
    """NVLinks of a GPU to NVSwitches, and of each directly cabled pair."""
    if len(gpus) == 1:
        return 0, 0
    buses = {gpu.bus: number for number, gpu in enumerate(gpus)}
    switch_G = [0] * len(gpus)
    pairs: dict[tuple[int, int], int] = {}
    for number, gpu in enumerate(gpus):
        for link in gpu.links:
            count = int(_number(link, "count", 100, file))
            peer = buses.get(link.get("target", ""))
            if peer is None or link.get("tclass", "") == SWITCH_CLASS:
                switch_G[number] += count
            elif peer != number:
                pairs[number, peer] = pairs.get((number, peer), 0) + count
    named = [f"GPU{gpu.given['dev']}" for gpu in gpus]
    if any(switch_G):
        if len(set(switch_G)) > 1:
            least, most = switch_G.index(min(switch_G)), max(switch_G)
            rule = f"{switch_G[least]} NVLinks to NVSwitches, others have {most}: mend the host, or list links in YAML"
            raise MoecastError(rule, file=file, field=named[least])
        return switch_G[0], 0
    for a in range(len(gpus)):
        for b in range(len(gpus)):
            if a != b and not pairs.get((a, b)):
                rule = f"no NVLink to {named[b]}: GPUs of a domain need one each way; list the links in YAML"
                raise MoecastError(rule, file=file, field=named[a])
    if len(set(pairs.values())) > 1:
        said = " and ".join(map(str, sorted(set(pairs.values()))))
        raise MoecastError(f"{said} NVLinks between GPUs: list links that are not alike in a YAML file", file=file)
    return 0, next(iter(pairs.values()))


def _number(given: Mapping[str, str], name: str, most: float, file: Path) -> float:
    text = given.get(name, "")
    try:
        value = float(text) if len(text) <= 20 else -1.0
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise MoecastError(f"a number of 0 to {most}", file=file, field=name, value=text)
    return value


def _pcie(pci: Mapping[str, str]) -> float:
    """GT/s × lanes; 0 where the file does not say (virtual machines)."""
    speed = _SPEED.fullmatch(pci.get("link_speed", ""))
    width = pci.get("link_width", "")
    return float(speed[1]) * int(width) if speed and width.isascii() and width.isdigit() and len(width) <= 3 else 0.0
