"""One host as its own tools describe it, and the domain that clusters are made of from it.

`nvidia-smi topo -m` and NCCL's dump say which NIC is near which GPU and how many NVLinks there are;
neither says what a GPU computes, and the first says no rate at all: those come from a preset.

Axes: G GPU, N NIC.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moecast.errors import MoecastError
from moecast.topology.presets import Preset
from moecast.topology.recipe import Domain

LEVELS = ("PIX", "PXB", "PHB", "NODE", "SYS")
"""How far a NIC is from a GPU, nearest first: one PCIe bridge, several, the host bridge, the NUMA node, its links."""

NEAR = ("PIX", "PXB")
"""A NIC this near is the GPU's own, and a second one at the same place is used too."""

MOST_GPUS, MOST_NICS = 64, 256
NIC_LINE_BPS = 50e9  # every preset's NIC has 400 Gb/s
PRESET_PCIE = 32.0 * 16  # GT/s × lanes of every preset's PCIe link


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTopology:
    """What a host's file says.

    Parameters
    ----------
    gpus, nics
        Their names.
    level_GN
        One of `LEVELS` for each GPU and NIC.
    switch_links
        NVLinks of each GPU to NVSwitches; 0: there are none.
    pair_links
        NVLinks of each pair of GPUs that are cabled directly; 0: there are none. With one GPU both
        are 0.
    numa_G
        NUMA node of each GPU, where it is known.
    line_Bps_N
        Line rate of each NIC, where the file says one.
    pcie_G, pcie_N
        GT/s × lanes of the PCIe link of each GPU and NIC, where the file says it.
    sm
        Compute capability × 10, where the file says it (90: Hopper, 100: Blackwell).
    """

    gpus: tuple[str, ...]
    nics: tuple[str, ...]
    level_GN: tuple[tuple[str, ...], ...]
    switch_links: int = 0
    pair_links: int = 0
    numa_G: tuple[str, ...] = ()
    line_Bps_N: tuple[float, ...] = ()
    pcie_G: tuple[float, ...] = ()
    pcie_N: tuple[float, ...] = ()
    sm: int | None = None

    @property
    def links_of_a_gpu(self) -> int:
        """NVLinks of each GPU."""
        return self.switch_links or self.pair_links * (len(self.gpus) - 1)


def domain_of(
    host: HostTopology, preset: Preset, file: Path, *, nic_Bps: float | None = None
) -> tuple[Domain, list[str]]:
    """Make a domain of a host: its NICs, who uses which, and its links at the preset's rates.

    Parameters
    ----------
    nic_Bps
        Usable rate of one NIC, over what the file and the preset say.

    Returns
    -------
    The domain, and what a reader should know of how the file was read.

    Raises
    ------
    MoecastError
        The NICs in use have different rates.
    """
    base, notes = preset.domain, []
    changes: dict[str, object] = {"gpus_per_host": len(host.gpus)}
    sources = dict(base.sources)
    if base.hosts > 1 and len(host.gpus) != base.gpus_per_host:
        changes["hosts"] = 1
        notes.append(f"taken as a domain by itself: a host of {preset.name} has {base.gpus_per_host} GPUs")
    links = host.links_of_a_gpu
    if links and links != preset.nvlinks:
        changes["nvlink_Bps"] = base.nvlink_Bps * links / preset.nvlinks
        sources["nvlink_Bps"] = f"{links} links of a GPU ({file.name}) at the rate of {preset.name}'s {preset.nvlinks}"
    if host.pair_links and len(host.gpus) > 2:
        changes["direct_nvlink"] = True
        notes.append("GPUs are cabled to each other, without NVSwitch")
    if host.nics:
        used_G, said = nearest_nics(host)
        notes += said
        for part in (_nic_places(host, used_G, file), _nic_rate(host, used_G, preset, file, nic_Bps)):
            changes |= part[0]
            sources |= part[1]
        rate, source = _pcie_rate(host, used_G, preset, file)
        changes |= rate
        sources |= source
    else:
        count = min(base.nics_per_host, len(host.gpus))
        changes |= {"nics_per_host": count} | ({} if nic_Bps is None else {"nic_Bps": nic_Bps})
        notes.append(f"the file names no NICs: {count}, as in {preset.name}")
    return replace(base, **changes, sources=sources), notes  # type: ignore[arg-type]


def _nic_places(
    host: HostTopology, used_G: Sequence[tuple[int, ...]], file: Path
) -> tuple[dict[str, object], dict[str, str]]:
    """Which GPUs share which of the host's NICs."""
    groups = list(dict.fromkeys(used_G))
    changes: dict[str, object] = {"nics_per_host": len(groups), "nic_of_gpu": None}
    nic_of_gpu = tuple(groups.index(nics) for nics in used_G)
    if nic_of_gpu != tuple(gpu * len(groups) // len(used_G) for gpu in range(len(used_G))):
        changes["nic_of_gpu"] = nic_of_gpu
    named = ", ".join(
        f"{gpu} {'+'.join(host.nics[nic] for nic in nics)}" for gpu, nics in zip(host.gpus, used_G, strict=True)
    )
    return changes, {"nic_of_gpu": f"nearest by PCIe: {named} ({file.name})"}


def _pcie_rate(
    host: HostTopology, used_G: Sequence[tuple[int, ...]], preset: Preset, file: Path
) -> tuple[dict[str, object], dict[str, str]]:
    """The slowest PCIe link of a GPU or of a NIC in use, where the file says it and it is not the preset's."""
    in_use = {nic for nics in used_G for nic in nics}
    found = [*host.pcie_G, *(rate for nic, rate in enumerate(host.pcie_N) if nic in in_use)]
    slowest = min((rate for rate in found if rate > 0), default=PRESET_PCIE)
    if slowest == PRESET_PCIE:
        return {}, {}
    source = f"slowest link in use: {slowest:g} GT/s × lanes ({file.name}), at {preset.name}'s efficiency"
    return {"pcie_Bps": preset.domain.pcie_Bps * slowest / PRESET_PCIE}, {"pcie_Bps": source}


def nearest_nics(host: HostTopology) -> tuple[list[tuple[int, ...]], list[str]]:
    """Give each GPU its nearest NIC, of equally near ones the least used, those of its own NUMA node first.

    A NIC that is left over goes to a GPU that it is as near to as its first one, if that is `NEAR`;
    where this gives GPUs different numbers of them, each keeps its first.
    """
    rank_GN = [[LEVELS.index(level) for level in row] for row in host.level_GN]
    numa_N = [_numa_of_nic(host, nic) for nic in range(len(host.nics))]
    slow = _slow(host)
    used: Counter[int] = Counter()
    found: dict[int, list[int]] = {}
    for gpu in sorted(range(len(host.gpus)), key=lambda g: (min(rank_GN[g]), g)):

        def far(nic: int, gpu: int = gpu) -> tuple[object, ...]:
            other_numa = bool(host.numa_G) and numa_N[nic] not in ("", host.numa_G[gpu])
            return nic in slow, rank_GN[gpu][nic], other_numa, used[nic], nic

        nic = min(range(len(host.nics)), key=far)
        used[nic] += 1
        found[gpu] = [nic]
    for nic in range(len(host.nics)):
        near = [
            gpu
            for gpu, nics in found.items()
            if rank_GN[gpu][nic] == rank_GN[gpu][nics[0]] and host.level_GN[gpu][nic] in NEAR
        ]
        if not used[nic] and near and nic not in slow:
            found[min(near, key=lambda gpu: (len(found[gpu]), gpu))].append(nic)
    if len({len(nics) for nics in found.values()}) > 1 or max(used.values()) > 1:
        found = {gpu: nics[:1] for gpu, nics in found.items()}
    used_G = [tuple(found[gpu]) for gpu in range(len(host.gpus))]
    return used_G, _use_notes(host, used_G)


def _slow(host: HostTopology) -> list[int]:
    """NICs for storage or management: less than half of the fastest one's rate."""
    fastest = max(host.line_Bps_N, default=0.0)
    return [nic for nic, rate in enumerate(host.line_Bps_N) if rate < fastest / 2]


def _numa_of_nic(host: HostTopology, nic: int) -> str:
    """The NUMA node of the GPUs near a NIC; empty where none is, or theirs is not known."""
    return next((numa for numa, row in zip(host.numa_G, host.level_GN, strict=False) if row[nic] in NEAR), "")


def _use_notes(host: HostTopology, used_G: Sequence[tuple[int, ...]]) -> list[str]:
    """What a reader would not expect of who uses which NIC."""
    notes = []
    in_use = {nic for nics in used_G for nic in nics}
    idle = [name for nic, name in enumerate(host.nics) if nic not in in_use]
    if idle:
        notes.append(f"NICs left out, since no GPU uses them: {', '.join(idle)}")
    if len(used_G[0]) > 1:
        notes.append(f"{len(used_G[0])} NICs near each GPU are taken as one of their summed rate")
    levels = [host.level_GN[gpu][nics[0]] for gpu, nics in enumerate(used_G)]
    far = [f"{name} ({level})" for name, level in zip(host.gpus, levels, strict=True) if level not in NEAR]
    if far:
        rule = "takes the least used of the nearest, over its own PCIe link (NCCL may relay over NVLink: PXN)"
        notes.append(f"no NIC near {', '.join(far)}: each {rule}")
    return notes


def _nic_rate(
    host: HostTopology, used_G: Sequence[tuple[int, ...]], preset: Preset, file: Path, nic_Bps: float | None
) -> tuple[dict[str, object], dict[str, str]]:
    """Usable bytes per second of what one GPU's NICs are together; nothing where they are as the preset's."""
    ports, usable = len(used_G[0]), preset.domain.nic_Bps / NIC_LINE_BPS
    if nic_Bps is not None:
        rate, source = nic_Bps * ports, "given" if ports == 1 else f"given, × {ports} NICs"
    elif not host.line_Bps_N:
        rate, source = (
            preset.domain.nic_Bps * ports,
            f"{ports} NICs, each as {preset.name}'s ({file.name} says no rate)",
        )
    else:
        lines = {sum(host.line_Bps_N[nic] for nic in nics) for nics in used_G}
        if len(lines) > 1:
            said = " and ".join(f"{line * 8 / 1e9:g} Gb/s" for line in sorted(lines))
            rule = f"the NICs of its GPUs have different rates ({said}): list the links in a YAML file"
            raise MoecastError(rule, file=file)
        (line,) = lines
        if line <= 0:
            raise MoecastError("its NICs have speed 0: give their usable rate (--nic-bandwidth)", file=file)
        rate = line * usable
        source = f"{line * 8 / 1e9:g} Gb/s ({file.name}), {usable:.0%} of it usable as in {preset.name}"
    return ({}, {}) if rate == preset.domain.nic_Bps and nic_Bps is None else ({"nic_Bps": rate}, {"nic_Bps": source})
