"""Clusters written as YAML that `yaml_io` reads back to the same cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from moecast.errors import MoecastError
from moecast.topology.builders import build_cluster
from moecast.topology.cluster import Cluster
from moecast.topology.fabric import Fabric
from moecast.topology.hardware import Hardware
from moecast.topology.nodes import Link, Nic, Switch
from moecast.topology.presets import find_preset
from moecast.topology.recipe import Domain, Recipe
from moecast.topology.yaml_model import DomainSection, HardwareSection, Quantity, parse_quantity

# Units to try, and the one that always fits.
_UNITS: dict[Quantity, tuple[tuple[float, str], ...]] = {
    "bandwidth": ((1e9, "GB/s"), (1, "B/s")),
    "time": ((1e-6, "us"), (1e-9, "ns"), (1, "s")),
    "size": ((2**30, "GiB"), (1e9, "GB"), (1, "B")),
    "rate": ((1e12, "TFLOP/s"), (1, "FLOP/s")),
}
_KINDS: dict[str, Quantity] = {"flop_per_s": "rate", "_Bps": "bandwidth", "_bytes": "size", "_s": "time"}


def to_yaml(cluster: Cluster, *, listing: bool = False, tables: bool = False) -> str:
    """Write a cluster as YAML: in the few words it was built from, else (or with `listing`) node by node.

    Parameters
    ----------
    tables
        Write the domain's and the hardware's numbers too where they are a preset's, as a file to
        start from.
    """
    recipe = cluster.recipe
    short = recipe is not None and not listing and build_cluster(recipe) == cluster
    content = _recipe(recipe, tables=tables) if short and recipe is not None else _listing(cluster)
    notes = "".join(f"# {' '.join(note.split())}\n" for note in (recipe.notes if recipe else ()))
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=1000, allow_unicode=True)
    return f"{notes}{text}"


class _Lines(dict[str, Any]):
    """A mapping written one entry a line."""


_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # as in yaml_io


class _Dumper(_SafeDumper):  # type: ignore[misc]
    """YAML with short mappings on one line, `_Lines` excepted, and no anchors."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


_Dumper.add_representer(
    _Lines, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=False)
)


def _recipe(recipe: Recipe, *, tables: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"name": recipe.name, "preset": recipe.preset, "nodes": recipe.n_domains}
    if recipe.fabric is not None:
        content["fabric"] = {
            "shape": recipe.fabric.shape,
            "oversubscription": recipe.fabric.oversubscription,
            "nodes_per_leaf": _nodes_per_leaf(recipe.fabric),
            "routing": recipe.fabric.routing,
        }
    base = find_preset(recipe.preset) if recipe.preset is not None else None
    if tables or base is None or recipe.domain != base.domain:
        content["domain"] = _table(recipe.domain)
    if tables or base is None or recipe.hardware != base.hardware:
        content["hardware"] = _table(recipe.hardware)
    return _without_none(content)


def _nodes_per_leaf(fabric: Fabric) -> int | None:
    """Say what the builder takes where a fabric leaves it open; left out, a file would take a preset's."""
    return None if fabric.shape == "single-switch" else fabric.nodes_per_leaf or 1


def _listing(cluster: Cluster) -> dict[str, Any]:
    nics = [node for node in cluster.nodes if isinstance(node, Nic)]
    switches = [node for node in cluster.nodes if isinstance(node, Switch)]
    return {
        "name": cluster.name,
        "routing": cluster.routing,
        "hardware": _table(cluster.hardware),
        "gpus": [{"name": g.name, "node": g.node, "domain": g.domain, "index": g.index} for g in cluster.gpus],
        "nics": [{"name": nic.name, "node": nic.node} for nic in nics],
        "switches": [{"name": switch.name, "tier": switch.tier} for switch in switches],
        "links": _links(cluster.links),
    }


def _links(links: tuple[Link, ...]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    index = 0
    while index < len(links):
        link, back = links[index], links[index + 1] if index + 1 < len(links) else None
        both = back is not None and (
            (back.source, back.destination) == (link.destination, link.source)
            and (back.capacity_Bps, back.latency_s) == (link.capacity_Bps, link.latency_s)
        )
        ends = {"between": [link.source, link.destination]} if both else {"from": link.source, "to": link.destination}
        entries.append(
            ends
            | {"bandwidth": _quantity(link.capacity_Bps, "bandwidth"), "latency": _quantity(link.latency_s, "time")}
        )
        index += 2 if both else 1
    return entries


def _table(table: Hardware | Domain) -> dict[str, Any]:
    section = HardwareSection if isinstance(table, Hardware) else DomainSection
    content: dict[str, Any] = {}
    for name, info in section.model_fields.items():
        value = getattr(table, name, None)
        kind = next((kind for suffix, kind in _KINDS.items() if name.endswith(suffix)), None)
        if isinstance(value, Mapping):
            value = {key: _quantity(item, kind) if kind else item for key, item in value.items()}
        elif kind and value is not None:
            value = _quantity(value, kind)
        elif isinstance(value, tuple):
            value = list(value)
        content[info.alias or name] = _Lines(table.sources) if name == "sources" else value
    return _without_none(content)


def _quantity(value: float, kind: Quantity) -> str:
    """Write a number with the first unit in which it reads back as the same number."""
    for scale, unit in _UNITS[kind]:
        text = f"{value / scale:.6g} {unit}"
        if _reads_as(text, kind, value):
            return text
    return f"{float(value)!r} {_UNITS[kind][-1][1]}"


def _reads_as(text: str, kind: Quantity, value: float) -> bool:
    try:
        return parse_quantity(text, kind) == value
    except MoecastError:
        return False


def _without_none(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if value is not None}
