"""The fabric as text: spines on top, then leaves, each with the hosts below it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moecast.topology.cluster import Cluster
from moecast.topology.nodes import Link, Nic, Switch
from moecast.units import format_Bps

_HOSTS_SHOWN = 6
_COLUMNS_SHOWN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class _Column:
    """Hosts that share their leaves."""

    leaves: tuple[str, ...]
    hosts: tuple[int, ...]


def draw(cluster: Cluster, *, width: int = 100) -> str:
    """Draw the fabric with box characters, at most `width` wide; what is left out is counted."""
    columns = _columns(cluster)
    shown, rest = columns[:_COLUMNS_SHOWN], columns[_COLUMNS_SHOWN:]
    contents = [(_title(column.leaves), *_column_rows(cluster, column)) for column in shown]
    span = max(len(row) for title, head, rows in contents for row in (title + "  ", *head, *rows))
    boxes = [_box(title, head, rows, span) for title, head, rows in contents]
    body = _side_by_side(boxes, width)
    if rest:
        body.append(f"… and {len(rest)} more like these with {sum(len(column.hosts) for column in rest)} hosts")
    spines = [node.name for node in cluster.nodes if isinstance(node, Switch) and node.tier in ("spine", "core")]
    if spines:
        up = [link for link in cluster.links if link.kind == "leaf-up"]
        body = _joined_to_spines(_spine_box(spines, up, len(body[0]) - 4), body, span + 4)
    return "\n".join(body)


def _columns(cluster: Cluster) -> list[_Column]:
    node_of_nic = {node.name: node.node for node in cluster.nodes if isinstance(node, Nic)}
    leaves: dict[int, set[str]] = {int(host): set() for host in cluster.node_of_gpu_G}
    for link in cluster.links:
        if link.kind == "nic-out":
            leaves.setdefault(node_of_nic[link.source], set()).add(link.destination)
    order = {node.name: index for index, node in enumerate(cluster.nodes)}
    hosts: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for host in sorted(leaves):
        hosts[tuple(sorted(leaves[host], key=order.__getitem__))].append(host)
    return [_Column(leaves=names, hosts=tuple(found)) for names, found in hosts.items()]


def _column_rows(cluster: Cluster, column: _Column) -> tuple[list[str], list[str]]:
    """Say what the leaves join, then list their hosts."""
    first = column.leaves[0] if column.leaves else None
    up = [link for link in cluster.links if link.kind == "leaf-up" and link.source == first]
    down = [link for link in cluster.links if link.kind == "nic-in" and link.source == first]
    each = " each" if len(column.leaves) > 1 else ""
    head = [
        f"{arrow} {_cables(links)}{each} {to}"
        for arrow, links, to in (("↑", up, "to spines"), ("↓", down, "to NICs"))
        if links
    ]
    shared_domains = cluster.n_domains < cluster.n_nodes
    rows = []
    for host in column.hosts[:_HOSTS_SHOWN]:
        gpus = [gpu for gpu in cluster.gpus if gpu.node == host]
        nics = sum(isinstance(node, Nic) and node.node == host for node in cluster.nodes)
        ids = _ranges([gpu.id for gpu in gpus])
        domain = f"  domain {_ranges(sorted({gpu.domain for gpu in gpus}))}" if shared_domains else ""
        rows.append(f"node{host}  GPU {ids}  {nics} NIC{'s' if nics != 1 else ''}{domain}")
    if len(column.hosts) > _HOSTS_SHOWN:
        rows.append(f"… {len(column.hosts) - _HOSTS_SHOWN} more hosts, to node{column.hosts[-1]}")
    return head, rows


def _spine_box(names: Sequence[str], up: Sequence[Link], span: int) -> list[str]:
    title = _title(names) if len(names) < 3 else f"{len(names)} spines: {_title(names)}"
    per_leaf = Counter(link.source for link in up)
    fewest, most = min(per_leaf.values(), default=0), max(per_leaf.values(), default=0)
    cables = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return _box(title, [], [f"{cables} cables from every leaf"], span)


def _joined_to_spines(spines: list[str], body: list[str], box_width: int) -> list[str]:
    """Mark where the boxes of the first row hang from the spines."""
    bottom, top = list(spines[-1]), list(body[0])
    for end in range(box_width - 1, len(top), box_width + 1):
        if top[end] == "┐" and end - 3 < len(bottom) - 1:
            bottom[end - 3], top[end - 3] = "┬", "┴"
    return [*spines[:-1], "".join(bottom), "".join(top), *body[1:]]


def _cables(links: Sequence[Link]) -> str:
    rates = {link.capacity_Bps for link in links}
    if len(rates) == 1:
        return f"{len(links)} x {format_Bps(rates.pop())}"
    return f"{len(links)} x {format_Bps(min(rates))} to {format_Bps(max(rates))}"


def _title(names: Sequence[str]) -> str:
    if not names:
        return "no leaves"
    if len(names) <= 2:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]}"


def _ranges(numbers: Sequence[int]) -> str:
    if len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(str(number) for number in numbers)


def _box(title: str, head: Sequence[str], rows: Sequence[str], span: int) -> list[str]:
    inner = max([len(title) + 2, span, *(len(row) for row in (*head, *rows))])
    rule = ["├" + "─" * (inner + 2) + "┤"] if head and rows else []
    return [
        f"┌─ {title} " + "─" * (inner - len(title) - 1) + "┐",
        *(f"│ {row:<{inner}} │" for row in head),
        *rule,
        *(f"│ {row:<{inner}} │" for row in rows),
        "└" + "─" * (inner + 2) + "┘",
    ]


def _side_by_side(boxes: Sequence[list[str]], width: int) -> list[str]:
    """Set boxes in rows, as many beside each other as fit."""
    lines: list[str] = []
    row: list[list[str]] = []
    for box in boxes:
        if row and sum(len(other[0]) + 1 for other in row) + len(box[0]) > width:
            lines += _joined(row)
            row = []
        row.append(box)
    return lines + _joined(row)


def _joined(boxes: Iterable[list[str]]) -> list[str]:
    boxes = list(boxes)
    height = max(len(box) for box in boxes)
    padded = [box + [" " * len(box[0])] * (height - len(box)) for box in boxes]
    return [" ".join(parts).rstrip() for parts in zip(*padded, strict=True)]
