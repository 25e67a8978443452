"""From a host's own description of itself to a cluster of such hosts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moecast.errors import MoecastError
from moecast.files import read_bytes
from moecast.topology.builders import build_cluster
from moecast.topology.cluster import Cluster
from moecast.topology.host import HostTopology, domain_of
from moecast.topology.nccl_xml import parse_nccl_xml
from moecast.topology.presets import find_preset
from moecast.topology.topo_matrix import parse_topo_matrix

if TYPE_CHECKING:
    from moecast.topology.fabric import Fabric

LIMIT_BYTES = 4 << 20

ASSUMED = {90: "dgx-h100", 100: "gb200-nvl72", 103: "gb200-nvl72"}
"""The preset that is taken where none is named, by compute capability × 10."""

DEFAULT_PRESET = "dgx-h100"


def read_host_cluster(
    path: str | Path,
    *,
    nodes: int | None = None,
    fabric: Fabric | None = None,
    preset: str | None = None,
    nic_Bps: float | None = None,
) -> Cluster:
    """Build a cluster of hosts like the one that a file describes: `nvidia-smi topo -m`, or NCCL's XML.

    Parameters
    ----------
    nodes, fabric
        How many, and what joins them; None: one, and the preset's fabric.
    preset
        Whose GPUs and rates stand in for what the file does not say; None: `ASSUMED`, and the
        cluster says so.
    nic_Bps
        Usable rate of one NIC, over what the file and the preset say.

    Raises
    ------
    MoecastError
        The file cannot be read or is neither, or there is no such preset.
    """
    path = Path(path)
    host = _parse(read_bytes(path, limit_bytes=LIMIT_BYTES), path)
    notes = []
    if preset is None:
        preset = ASSUMED.get(host.sm or 0, DEFAULT_PRESET)
        notes.append(f"GPUs and rates are assumed to be those of {preset}: name another with --preset")
    base = find_preset(preset, field="preset")
    if host.sm is not None and ASSUMED.get(host.sm) not in (None, ASSUMED.get(_sm_of(base.name))):
        notes.append(f"{path.name} says GPUs of compute capability {host.sm / 10:g}, {preset} has others")
    elif host.sm is not None and host.sm not in ASSUMED:
        notes.append(f"no preset has GPUs of compute capability {host.sm / 10:g}: {preset}'s are taken")
    domain, said = domain_of(host, base, path, nic_Bps=nic_Bps)
    try:
        made = replace(base, name=f"{path.stem} as {preset}", domain=domain)
        recipe = made.recipe(n_domains=nodes or 1, fabric=fabric)
        return build_cluster(replace(recipe, preset=preset, notes=(*notes, *said)))
    except ValueError as error:
        raise MoecastError(str(error), file=path) from error


def _sm_of(preset: str) -> int:
    return 100 if preset == "gb200-nvl72" else 90


def _parse(data: bytes, path: Path) -> HostTopology:
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return parse_nccl_xml(data, path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MoecastError(IS_NONE, file=path) from error
    if "GPU" not in text:
        raise MoecastError(IS_NONE, file=path)
    return parse_topo_matrix(text, path)


IS_NONE = (
    "no cluster: a file that ends in .yaml, what `nvidia-smi topo -m` prints, or what NCCL writes "
    "to NCCL_TOPO_DUMP_FILE"
)
