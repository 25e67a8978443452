"""From a name or a file to a cluster, and back to a file."""

from __future__ import annotations

from pathlib import Path

from moecast.errors import MoecastError
from moecast.files import write_text
from moecast.topology.builders import build_cluster
from moecast.topology.cluster import Cluster
from moecast.topology.fabric import parse_fabric
from moecast.topology.presets import find_preset


def load_cluster(name_or_path: str | Path, *, nodes: int | None = None, fabric: str | None = None) -> Cluster:
    """Build the cluster that a preset's name or a YAML file describes.

    Parameters
    ----------
    name_or_path
        "dgx-h200", or a path that ends in .yaml or .yml.
    nodes
        How many of the preset's nodes (of its domains, where a domain has several hosts); overrides a file's.
    fabric
        "leaf-spine:2", "rail:1", "single-switch" and the like (see `parse_fabric`); overrides a file's.

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

        return read_cluster(name_or_path, nodes=nodes, fabric=wanted)
    preset = find_preset(str(name_or_path))
    try:
        return build_cluster(preset.recipe(n_domains=nodes or 1, fabric=wanted))
    except ValueError as error:
        raise MoecastError(str(error), field="cluster", value=str(name_or_path)) from error


def write_cluster(cluster: Cluster, path: str | Path, *, listing: bool = False) -> None:
    """Write a cluster to a YAML file that `load_cluster` reads back to the same cluster.

    Parameters
    ----------
    cluster
        What to write.
    path
        The file, made or replaced.
    listing
        List every node and link, also where a preset and a fabric say the same.

    Raises
    ------
    MoecastError
        The folder does not exist or cannot be written.
    """
    from moecast.topology.yaml_out import to_yaml  # as above

    write_text(path, to_yaml(cluster, listing=listing))
