"""Cluster files: YAML in, cluster out, and back to the same cluster.

A file says it in one of two ways: built from a preset (`preset`, `nodes`, `fabric`, and what
differs under `domain` and `hardware`), or listed (`gpus`, `nics`, `switches`, `links`).
`moecast.topology.yaml_model` has the fields.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from moecast.errors import MoecastError
from moecast.topology.builders import build_cluster
from moecast.topology.cluster import Cluster
from moecast.topology.fabric import Fabric
from moecast.topology.hardware import NO_NUMBERS, Hardware
from moecast.topology.nodes import Gpu, Link, Nic, Node, Switch
from moecast.topology.presets import Preset, find_preset
from moecast.topology.presets.preset import NODES_PER_LEAF
from moecast.topology.recipe import Domain
from moecast.topology.yaml_model import ClusterFile, DomainSection, HardwareSection, LinkEntry
from moecast.yaml_text import read_mapping

Table = TypeVar("Table", Hardware, Domain)

_LIMIT_BYTES = 16 << 20
_LISTING = ("gpus", "nics", "switches", "links")


def read_cluster(path: str | Path, *, nodes: int | None = None, fabric: Fabric | None = None) -> Cluster:
    """Read the cluster file at `path`.

    Parameters
    ----------
    path
        YAML.
    nodes, fabric
        Override the file's, where it builds from a preset or a domain.

    Raises
    ------
    MoecastError
        The file cannot be read, or one of its fields is unknown, missing or out of its range.
    """
    path = Path(path)
    given = _checked(read_mapping(path, what="a cluster file is a mapping of fields", limit_bytes=_LIMIT_BYTES), path)
    if any(getattr(given, name) is not None for name in _LISTING):
        return _listed(given, path, nodes, fabric)
    return _built(given, path, nodes, fabric)


def _built(given: ClusterFile, path: Path, nodes: int | None, fabric: Fabric | None) -> Cluster:
    if given.routing is not None:
        rule = "stands under fabric, unless links are listed"
        raise MoecastError(rule, file=path, field="routing")
    if given.preset is None and given.domain is None:
        raise MoecastError(
            "missing: a cluster file names a preset or a domain, or lists its links", file=path, field="preset"
        )
    base = find_preset(given.preset, file=path, field="preset") if given.preset else None
    domain = _filled(given.domain or DomainSection(), base.domain if base else None, Domain, path, "domain")
    preset = Preset(
        name=given.preset or path.stem,
        summary="",
        domain=domain,
        hardware=_hardware(given.hardware, base, path),
        fabric=base.fabric if base else Fabric(shape="leaf-spine", routing="ecmp"),
        nodes_per_leaf=base.nodes_per_leaf if base else NODES_PER_LEAF,
    )
    with _naming(path):
        if fabric is None and given.fabric is not None:
            fabric = Fabric(**given.fabric.given())
        recipe = preset.recipe(n_domains=nodes or given.nodes or 1, fabric=fabric, name=given.name)
        return build_cluster(replace(recipe, preset=given.preset))


def _listed(given: ClusterFile, path: Path, nodes: int | None, fabric: Fabric | None) -> Cluster:
    for name in ("preset", "nodes", "fabric", "domain"):
        if getattr(given, name) is not None:
            rule = "does not go with a list of links: the links say it"
            raise MoecastError(rule, file=path, field=name)
    if nodes is not None or fabric is not None:
        rule = "lists its links, so the number of nodes and the fabric cannot be overridden"
        raise MoecastError(rule, file=path)
    for name in ("gpus", "links"):
        if getattr(given, name) is None:
            raise MoecastError("missing", file=path, field=name)
    found = _nodes(given)
    by_name = {node.name: node for node in found}
    links: list[Link] = []
    for index, entry in enumerate(given.links or ()):
        with _naming(path, f"links[{index}]"):
            links += _both_or_one(entry, by_name)
    hardware = _hardware(given.hardware, None, path)
    with _naming(path):
        return Cluster(
            name=given.name or path.stem,
            nodes=found,
            links=tuple(links),
            hardware=hardware,
            routing=given.routing or "ecmp",
        )


def _nodes(given: ClusterFile) -> tuple[Node, ...]:
    places: Counter[int] = Counter()
    found: list[Node] = []
    for number, gpu in enumerate(given.gpus or ()):
        index = places[gpu.domain] if gpu.index is None else gpu.index
        found.append(Gpu(name=gpu.name, id=number, node=gpu.node, domain=gpu.domain, index=index))
        places[gpu.domain] += 1
    found += [Nic(name=nic.name, node=nic.node) for nic in given.nics or ()]
    found += [Switch(name=switch.name, tier=switch.tier) for switch in given.switches or ()]
    return tuple(found)


def _both_or_one(entry: LinkEntry, by_name: dict[str, Node]) -> list[Link]:
    ends = entry.between or (entry.source, entry.destination)
    one_way = entry.source is not None or entry.destination is not None
    if None in ends or (entry.between and one_way):
        raise ValueError("give either between: [a, b] for both directions, or from and to for one")
    for end in ends:
        if end not in by_name:
            raise ValueError(f"no node is called {end!r}")
    a, b = (by_name[str(end)] for end in ends)
    pairs = [(a, b)] if one_way else [(a, b), (b, a)]
    return [Link.between(start, end, entry.capacity_Bps, entry.latency_s) for start, end in pairs]


def _hardware(section: HardwareSection | None, preset: Preset | None, path: Path) -> Hardware:
    section = section or HardwareSection()
    if section.preset is not None:
        preset = find_preset(section.preset, file=path, field="hardware.preset")
    return _filled(section, preset.hardware if preset else None, Hardware, path, "hardware")


def _filled(
    section: HardwareSection | DomainSection, base: Table | None, kind: type[Table], path: Path, field: str
) -> Table:
    """Put the fields of a section over a preset's; a number that the file changes has the file as its source."""
    changes = section.given()
    changes.pop("preset", None)
    if base is not None and not changes:
        return base
    sources = dict(base.sources) if base else {}
    for name, value in changes.items():
        if name not in NO_NUMBERS:
            sources |= dict.fromkeys(_changed(name, value, base), f"given in {path.name}")
        if isinstance(value, dict) and base is not None:
            changes[name] = dict(getattr(base, name)) | value
    changes["sources"] = sources | (section.sources or {})
    with _naming(path, field):
        if base is not None:
            return _with_known_sources(replace(base, **changes), section, path, field)
        missing = [item.name for item in fields(kind) if item.name not in changes and not _has_default(item)]
        if missing:
            name = type(section).model_fields[missing[0]].alias or missing[0]
            rule = "missing: give it, or name a preset to start from"
            raise MoecastError(rule, file=path, field=f"{field}.{name}")
        return _with_known_sources(kind(**changes), section, path, field)


def _changed(name: str, value: object, base: Table | None) -> list[str]:
    """The numbers of a field that are not the preset's already, as `sources` calls them."""
    held = getattr(base, name, None)
    if not isinstance(value, dict):
        return [] if base is not None and value == held else [name]
    held = held if isinstance(held, Mapping) else {}
    return [f"{name}.{key}" for key, number in value.items() if number != held.get(key)]


def _with_known_sources(table: Table, section: HardwareSection | DomainSection, path: Path, field: str) -> Table:
    known = table.numbers() if isinstance(table, Hardware) else {item.name for item in fields(table)}
    for name in section.sources or {}:
        if name not in known:
            rule = f"a source is given for one of {', '.join(sorted(known))}"
            raise MoecastError(rule, file=path, field=f"{field}.sources.{name}")
    return table


def _has_default(item: Any) -> bool:
    return item.default is not MISSING or item.default_factory is not MISSING


@contextlib.contextmanager
def _naming(path: Path, field: str | None = None) -> Iterator[None]:
    """Turn the ValueError of a dataclass into the user's error, with the file and the field."""
    try:
        yield
    except ValueError as error:
        raise MoecastError(str(error), file=path, field=field) from error


def _checked(value: dict[str, Any], path: Path) -> ClusterFile:
    try:
        return ClusterFile.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        rule = {"extra_forbidden": "unknown field", "missing": "missing"}.get(first["type"])
        if rule is None:
            rule = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        shown = None if first["type"] in ("missing", "extra_forbidden") else first["input"]
        raise MoecastError(rule, file=path, field=field, value=shown) from None
