"""Pictures of a search for a training layout: speed against memory, memory by part, and the winner's pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import plotly.graph_objects as go

from moecast.report.figures import finished
from moecast.report.plan_figures import GIB, wrapped

COLOURS = ("#4c78a8", "#54a24b", "#f58518", "#b279a2", "#e45756", "#9ecae9", "#7a8594", "#72b7b2")
PASS_COLOURS = {
    "forward": "#4c78a8",
    "gradients of inputs": "#f58518",
    "gradients of weights": "#54a24b",
    "backward": "#e45756",
    "forward beside backward": "#b279a2",
}
BESIDE = ("total", "usable", "capacity")
"""What stands beside the parts of a memory."""


def front(answer: Mapping[str, Any]) -> go.Figure:
    """Speed against the memory of the fullest rank: those scored, those timed whole, those that none beats in both."""
    figure = go.Figure()
    series = (
        ("scored by their layers", answer["scored"], "markers", "circle", 6, "#c8cdd3"),
        (f"timed whole, by {answer['network']}", answer["timed"], "markers", "diamond", 10, "#f58518"),
        ("front", answer["front"], "lines", "circle", 8, "#7a8594"),
        ("winner", [answer["winner"]], "markers", "star", 16, "#0b7a4b"),
    )
    for name, found, mode, symbol, size, colour in series:
        figure.add_scatter(
            x=[_bytes(one) / GIB for one in found],
            y=[one["tokens_per_s_per_gpu"] for one in found],
            text=[wrapped(one["name"]) for one in found],
            mode=mode,
            name=name,
            marker={"size": size, "symbol": symbol, "color": colour},
            line={"color": colour},
            hovertemplate="%{text}<br>%{x:.1f} GiB, %{y:,.0f} tokens/s a GPU<extra></extra>",
        )
    figure.add_vline(x=answer["winner"]["memory_bytes"]["usable"] / GIB, line_dash="dot")
    figure.update_layout(xaxis_title="GiB of the fullest rank (dotted: usable)", yaxis_title="tokens/s of a GPU")
    figure.update_yaxes(rangemode="tozero")
    return finished(figure, height=440)


def _bytes(one: Mapping[str, Any]) -> int:
    held = one["memory_bytes"]
    return int(held["total"] if isinstance(held, Mapping) else held)


def parts_of(held: Iterable[Mapping[str, int]]) -> dict[str, str]:
    """The parts that any of these memories has, each with its colour."""
    names = dict.fromkeys(name for of in held for name in of if name not in BESIDE)
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def pipeline(passes: Mapping[str, Any]) -> go.Figure:
    """What each pipeline rank does, pass by pass; white is waiting."""
    figure = go.Figure()
    for kind, colour in PASS_COLOURS.items():
        of = [span for span in passes["spans"] if span["kind"] == kind]
        if not of:
            continue
        figure.add_bar(
            y=[f"rank {span['rank']}" for span in of],
            base=[span["start_s"] for span in of],
            x=[span["end_s"] - span["start_s"] for span in of],
            name=kind,
            orientation="h",
            marker={"color": colour, "line": {"color": "white", "width": 0.5}},
            customdata=[[span["microbatch"], span["chunk"]] for span in of],
            hovertemplate=f"{kind} of microbatch %{{customdata[0]}}, chunk %{{customdata[1]}}: %{{x:.3g}} s"
            "<extra>%{y}</extra>",
        )
    order = [f"rank {rank}" for rank in range(passes["ranks"])]
    figure.update_layout(barmode="overlay", bargap=0.15, xaxis_title="s")
    figure.update_yaxes(categoryorder="array", categoryarray=order, autorange="reversed")
    return finished(figure, height=140 + 24 * max(len(order), 3))
