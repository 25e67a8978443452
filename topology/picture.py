"""The fabric as an interactive picture: one HTML file that loads nothing."""

from __future__ import annotations

from collections import defaultdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecast.files import write_text
from moecast.topology.cluster import Cluster
from moecast.topology.measures import measure
from moecast.topology.nodes import Gpu, Link
from moecast.units import format_Bps, format_s

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Height of each kind of node in the picture, its colour, its mark and the name in the legend.
_LAYERS = {
    "core": (5.0, "#5b3a8c", "square", "core switches"),
    "spine": (4.0, "#7a4fb5", "square", "spines"),
    "leaf": (3.0, "#2166ac", "square", "leaves"),
    "nic": (2.0, "#d6791f", "diamond", "NICs"),
    "gpu": (1.0, "#2f8f4e", "circle", "GPUs"),
    "nvswitch": (0.0, "#111827", "square", "NVSwitches"),
}
_LINK_NAMES = {
    "nvlink-out": ("NVLink", "#9dc9aa"),
    "nvlink-direct": ("NVLink", "#9dc9aa"),
    "pcie-out": ("PCIe", "#e9bd8f"),
    "nic-out": ("NIC to leaf", "#8fb4d9"),
    "nic-direct": ("NIC to NIC", "#8fb4d9"),
    "leaf-up": ("leaf to spine", "#c3addf"),
    "leaf-direct": ("leaf to leaf", "#c3addf"),
    "spine-up": ("spine to core", "#a58bc9"),
}
_GAP = 1.0
_BUTTONS = ["zoom2d", "pan2d", "resetScale2d", "toImage"]
_STYLE = """
body { margin: 0; font: 16px/1.45 system-ui, sans-serif; color: #1f2937; background: #fff }
header { padding: 1rem 1.25rem 0 } h1 { font-size: 1.3rem; margin: 0 0 .3rem } p { margin: .2rem 0; color: #4b5563 }
"""


def write_picture(cluster: Cluster, path: str | Path) -> None:
    """Write the fabric as an HTML file with plotly inside.

    Raises
    ------
    MoecastError
        The folder does not exist or cannot be written.
    """
    measures = measure(cluster)
    facts = [
        f"{measures.n_gpus} × {cluster.hardware.name}, nodes: {measures.n_nodes}, NVLink domains: {measures.n_domains}",
        f"bisection {format_Bps(measures.bisection_Bps)}, oversubscription {measures.oversubscription:g}:1",
        f"routing {cluster.routing}",
    ]
    figure = draw_figure(cluster).to_html(
        full_html=False,
        include_plotlyjs=True,
        div_id="fabric",  # plotly's own is drawn at random
        config={"displaylogo": False, "responsive": True, "modeBarButtons": [_BUTTONS]},
    )
    write_text(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(cluster.name)}</title><style>{_STYLE}</style></head><body><header>"
        f"<h1>{escape(cluster.name)}</h1>{''.join(f'<p>{escape(fact)}</p>' for fact in facts)}</header>"
        f"{figure}</body></html>\n",
    )


def draw_figure(cluster: Cluster) -> Figure:
    """Draw the fabric as a plotly figure: a layer for each kind of node, a line for each cable."""
    import plotly.graph_objects as go

    place = _places(cluster)
    figure = go.Figure()
    for name, (color, links) in _by_name(cluster).items():
        figure.add_trace(_lines(name, color, links, place))
        figure.add_trace(_hover_points(name, links, place))
    kinds = {node.kind for node in cluster.nodes}
    for kind, (_, color, symbol, name) in _LAYERS.items():
        if kind not in kinds:
            continue
        nodes = [node for node in cluster.nodes if node.kind == kind]
        figure.add_trace(
            go.Scatter(
                x=[place[node.name][0] for node in nodes],
                y=[place[node.name][1] for node in nodes],
                mode="markers",
                marker={"size": _mark_size(len(nodes)), "color": color, "symbol": symbol},
                text=[_describe(node) for node in nodes],
                hovertemplate="%{text}<extra></extra>",
                name=f"{len(nodes)} {name}",
            )
        )
    figure.update_layout(
        template="plotly_white",
        height=560,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "y": -0.02, "x": 0},
        hovermode="closest",
        xaxis={"visible": False},
        yaxis={"visible": False},
    )
    return figure


def _places(cluster: Cluster) -> dict[str, tuple[float, float]]:
    """Set GPUs side by side, host by host, and every other node above or below the middle of what it joins."""
    x: dict[str, float] = {}
    at, host = 0.0, cluster.gpus[0].node
    for gpu in sorted(cluster.gpus, key=lambda gpu: (gpu.node, gpu.id)):
        at += _GAP if gpu.node != host else 0.0
        host = gpu.node
        x[gpu.name] = at
        at += 1.0
    neighbours: dict[str, list[str]] = defaultdict(list)
    for link in cluster.links:
        neighbours[link.destination].append(link.source)
    for kind in ("nvswitch", "nic", "leaf", "spine", "core"):
        row = [node.name for node in cluster.nodes if node.kind == kind]
        for name in row:
            below = [x[other] for other in neighbours[name] if other in x]
            x[name] = sum(below) / len(below) if below else 0.0
        if kind not in ("nvswitch", "nic"):
            _spread(row, x, at)
    height = {node.name: _LAYERS[node.kind][0] for node in cluster.nodes}
    return {name: (value, height[name]) for name, value in x.items()}


def _spread(row: list[str], x: dict[str, float], width: float) -> None:
    """Space a row evenly in its order: the leaves of a rail all have their middle at the same place."""
    order = sorted(range(len(row)), key=lambda index: (round(x[row[index]], 6), index))
    for rank, index in enumerate(order):
        x[row[index]] = (rank + 0.5) * width / len(row) - 0.5


def _by_name(cluster: Cluster) -> dict[str, tuple[str, list[Link]]]:
    groups: dict[str, tuple[str, list[Link]]] = {}
    for link in cluster.links:
        if link.kind in _LINK_NAMES:
            name, color = _LINK_NAMES[link.kind]
            groups.setdefault(name, (color, []))[1].append(link)
    return groups


def _lines(name: str, color: str, links: list[Link], place: dict[str, tuple[float, float]]) -> Any:
    import plotly.graph_objects as go

    x: list[float | None] = []
    y: list[float | None] = []
    for link in links:
        (x0, y0), (x1, y1) = place[link.source], place[link.destination]
        x += [x0, x1, None]
        y += [y0, y1, None]
    width = 1.5 if len(links) <= 200 else 0.6
    return go.Scatter(
        x=x, y=y, mode="lines", line={"color": color, "width": width}, hoverinfo="skip", name=name, legendgroup=name
    )


def _hover_points(name: str, links: list[Link], place: dict[str, tuple[float, float]]) -> Any:
    """Lay invisible points on the middle of the lines, since plotly tells nothing along a line."""
    import plotly.graph_objects as go

    return go.Scatter(
        x=[(place[link.source][0] + place[link.destination][0]) / 2 for link in links],
        y=[(place[link.source][1] + place[link.destination][1]) / 2 for link in links],
        mode="markers",
        marker={"size": 9, "opacity": 0},
        text=[
            f"{escape(link.source)} – "
            f"{escape(link.destination)}<br>{format_Bps(link.capacity_Bps)}, "
            f"{format_s(link.latency_s)}"
            for link in links
        ],
        hovertemplate="%{text}<extra></extra>",
        legendgroup=name,
        showlegend=False,
    )


def _describe(node: Any) -> str:
    if isinstance(node, Gpu):
        return f"{escape(node.name)}: GPU {node.id}, domain {node.domain}, place {node.index}"
    return escape(node.name)


def _mark_size(count: int) -> float:
    return max(4.0, min(12.0, 350.0 / count))
