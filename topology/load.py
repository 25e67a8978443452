"""From a name or a file to a cluster."""

from __future__ import annotations

from pathlib import Path

from moecast.errors import MoecastError
from moecast.topology.builders import build_cluster
from moecast.topology.cluster import Cluster
from moecast.topology.fabric import parse_fabric
from moecast.topology.presets import PRESETS, Preset


def list_presets() -> tuple[Preset, ...]:
    """List the presets, in the order they are shown."""
    return PRESETS


def find_preset(name: str) -> Preset:
    """Find the preset called `name`.

    Raises
    ------
    MoecastError
        There is none.
    """
    for preset in PRESETS:
        if preset.name == name:
            return preset
    known = ", ".join(preset.name for preset in PRESETS)
    raise MoecastError(f"no such cluster preset or YAML file; presets are {known}", field="cluster", value=name)


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
    recipe = find_preset(str(name_or_path)).recipe
    wanted = parse_fabric(fabric) if fabric is not None else None
    try:
        return build_cluster(recipe(n_domains=1 if nodes is None else nodes, fabric=wanted))
    except ValueError as error:
        raise MoecastError(str(error), field="cluster", value=str(name_or_path)) from error
