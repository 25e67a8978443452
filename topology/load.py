"""From a name or a file to a cluster, and back to a file."""

from __future__ import annotations

from pathlib import Path

from moecast.errors import MoecastError
from moecast.files import write_text
from moecast.topology.builders import build_cluster
from moecast.topology.cluster import Cluster
from moecast.topology.fabric import parse_fabric
from moecast.topology.presets import find_preset, list_presets


def load_cluster(
    name_or_path: str | Path,
    *,
    nodes: int | None = None,
    fabric: str | None = None,
    preset: str | None = None,
    nic_Bps: float | None = None,
) -> Cluster:
    """Build the cluster that a preset's name, a YAML file or a host's own description (see below) describes.

    Parameters
    ----------
    name_or_path
        "dgx-h200"; a path that ends in .yaml or .yml; or a file with what `nvidia-smi topo -m`
        prints on one of the hosts, or NCCL writes there (`NCCL_TOPO_DUMP_FILE`).
    nodes
        How many of the preset's nodes (of its domains, where a domain has several hosts); overrides
        a file's.
    fabric
        "leaf-spine:2", "rail:1", "single-switch" and the like (see `parse_fabric`); overrides a
        file's.
    preset, nic_Bps
        For a host's own description: whose GPUs and rates stand in for what it does not say (None:
        an assumption that the cluster's notes name), and the usable rate of one NIC.

    Raises
    ------
    MoecastError
        No such preset, a value out of its range, or a file that cannot be used.
    """
    wanted = parse_fabric(fabric) if fabric is not None else None
    if nodes is not None and nodes < 1:
        raise MoecastError("must be at least 1", field="nodes", value=nodes)
    if str(name_or_path).endswith((".yaml", ".yml")):
        from moecast.topology.yaml_io import read_cluster  # pydantic: only files need it

        _refuse_host_options(preset, nic_Bps)
        return read_cluster(name_or_path, nodes=nodes, fabric=wanted)
    known = str(name_or_path) in {one.name for one in list_presets()}
    if not known and Path(name_or_path).exists():
        from moecast.topology.host_file import read_host_cluster  # as above: expat

        return read_host_cluster(name_or_path, nodes=nodes, fabric=wanted, preset=preset, nic_Bps=nic_Bps)
    found = find_preset(str(name_or_path))
    _refuse_host_options(preset, nic_Bps)
    try:
        return build_cluster(found.recipe(n_domains=nodes or 1, fabric=wanted))
    except ValueError as error:
        raise MoecastError(str(error), field="cluster", value=str(name_or_path)) from error


def _refuse_host_options(preset: str | None, nic_Bps: float | None) -> None:
    for field, value in (("preset", preset), ("nic_bandwidth", nic_Bps)):
        if value is not None:
            rule = (
                "goes with what `nvidia-smi topo -m` or NCCL says of a host; presets and YAML files say it themselves"
            )
            raise MoecastError(rule, field=field, value=value)


def write_cluster(cluster: Cluster, path: str | Path, *, listing: bool = False, tables: bool = False) -> None:
    """Write a cluster to a YAML file that `load_cluster` reads back to the same cluster.

    Parameters
    ----------
    cluster
        What to write.
    path
        The file, made or replaced.
    listing
        List every node and link, also where a preset and a fabric say the same.
    tables
        Write all numbers of the domain and the hardware, also where a preset says the same.

    Raises
    ------
    MoecastError
        The folder does not exist or cannot be written.
    """
    from moecast.topology.yaml_out import to_yaml  # as above

    write_text(path, to_yaml(cluster, listing=listing, tables=tables))
