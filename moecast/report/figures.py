"""The report's pictures: each takes predictions of one phase, keyed by plan, and gives a plotly figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from moecast.sim import Prediction

# One colour a part of the step everywhere; idle is grey because nothing happens in it.
PART_COLOURS = {
    "attention": "#4c78a8",
    "router": "#9ecae9",
    "dispatch": "#f58518",
    "expert": "#54a24b",
    "combine": "#e45756",
    "other": "#b279a2",
    "idle": "#c8cdd3",
}
PLAN_COLOURS = ("#7a8594", "#f58518", "#2456c7", "#54a24b", "#b279a2", "#e45756")

HEAT_SPREAD = 0.6  # the same colours in every heat map, so that two can be compared

Predictions = Mapping[str, Prediction]


def breakdown(predictions: Predictions) -> go.Figure:
    """Where the step goes: a stacked bar per plan, in ms; the parts add up to the step time."""
    figure = go.Figure()
    plans = list(predictions)
    for part, colour in PART_COLOURS.items():
        values = [predictions[plan].breakdown_s[part] * 1e3 for plan in plans]
        figure.add_bar(
            y=plans,
            x=values,
            name=part,
            orientation="h",
            marker_color=colour,
            hovertemplate="%{y}: " + part + " %{x:.3f} ms<extra></extra>",
        )
    figure.update_layout(barmode="stack", xaxis_title="mean over ranks, ms", yaxis_autorange="reversed")
    return finished(figure, height=110 + 46 * len(plans))


def step_times(predictions: Predictions) -> go.Figure:
    """Every simulated step of each plan, in ms: the spread is the forecast's own, not noise."""
    figure = go.Figure()
    for (plan, prediction), colour in zip(predictions.items(), _plan_colours(predictions), strict=True):
        times = [t * 1e3 for t in prediction.step_times_s or ()]
        figure.add_box(x=times, name=plan, boxpoints="all", jitter=0.4, pointpos=0, marker_color=colour, line_width=1)
    figure.update_layout(xaxis_title="step time, ms", showlegend=False, yaxis_autorange="reversed")
    return finished(figure, height=110 + 56 * len(predictions))


def gains(predictions: Predictions) -> go.Figure:
    """What twice of each resource saves, in % of the step: the largest is the bottleneck; below 0 it takes longer."""
    figure = go.Figure()
    names = list(dict.fromkeys(name for prediction in predictions.values() for name in prediction.gains))
    for (plan, prediction), colour in zip(predictions.items(), _plan_colours(predictions), strict=True):
        values = [100 * prediction.gains.get(name, 0.0) for name in names]
        figure.add_bar(y=names, x=values, name=plan, orientation="h", marker_color=colour)
    figure.update_layout(barmode="group", xaxis_title="% of the step saved", yaxis_autorange="reversed")
    return finished(figure, height=140 + (18 + 12 * len(predictions)) * len(names))


def traffic(prediction: Prediction, most: float) -> go.Figure:
    """Who sends how much to whom: bytes dispatched per step from each source to each destination, in MiB."""
    bytes_SD = np.asarray(prediction.traffic_SD, float) / 2**20
    np.fill_diagonal(bytes_SD, np.nan)  # what stays on a rank is no traffic
    figure = go.Figure(go.Heatmap(z=bytes_SD, colorscale="Blues", zmin=0, zmax=most / 2**20, colorbar={"title": "MiB"}))
    unit = "rank" if prediction.plan.get("ranks") in (None, len(bytes_SD)) else "domain"
    figure.update_layout(xaxis_title=f"destination {unit}", yaxis_title=f"source {unit}", yaxis_autorange="reversed")
    return finished(figure, height=420)


def throughput(predictions: Predictions) -> go.Figure:
    """Tokens/s per GPU against latency: where runs answer different questions, both count."""
    figure = go.Figure()
    for (plan, prediction), colour in zip(predictions.items(), _plan_colours(predictions), strict=True):
        figure.add_scatter(
            x=[(prediction.latency_s or 0.0) * 1e3],
            y=[prediction.tokens_per_s_per_gpu],
            name=plan,
            mode="markers+text",
            text=[plan],
            textposition="top center",
            marker={"size": 12, "color": colour},
        )
    kinds = " or ".join(dict.fromkeys(prediction.latency_kind for prediction in predictions.values()))
    figure.update_layout(xaxis_title=f"{kinds}, ms", yaxis_title="tokens/s per GPU", showlegend=False)
    return finished(figure, height=360)


def rank_load(predictions: Predictions) -> go.Figure:
    """Choices served by each rank, pooled over layers and steps, over the mean of all ranks."""
    figure = go.Figure()
    for (plan, prediction), colour in zip(predictions.items(), _plan_colours(predictions), strict=True):
        load_LG = np.asarray(prediction.rank_load_LG, float)
        worst_G = (load_LG / load_LG.mean(axis=1, keepdims=True)).max(axis=0)
        figure.add_scatter(
            x=list(range(len(worst_G))),
            y=worst_G,
            name=plan,
            mode="lines+markers",
            line={"color": colour, "shape": "hvh"},
            hovertemplate=f"{plan}, rank %{{x}}: %{{y:.2f}} × mean in its worst layer<extra></extra>",
        )
    figure.add_hline(y=1, line_dash="dot", line_color="#5b6675")
    figure.update_layout(xaxis_title="rank", yaxis_title="worst layer's load ÷ mean")
    return finished(figure, height=300)


def load_heatmap(prediction: Prediction) -> go.Figure:
    """Load of each rank in each MoE layer over the layer's mean."""
    load_LG = np.asarray(prediction.rank_load_LG, float)
    ratio = load_LG / load_LG.mean(axis=1, keepdims=True)
    return _heatmap(ratio, "rank", "MoE layer", "load ÷ mean", middle=1.0)


def links(predictions: Predictions) -> go.Figure:
    """The fullest link of each kind: share of its capacity used over the step."""
    figure = go.Figure()
    for (plan, prediction), colour in zip(predictions.items(), _plan_colours(predictions), strict=True):
        fullest: dict[str, Mapping[str, Any]] = {}
        for link in prediction.link_utilisation:  # sorted, the fullest first
            fullest.setdefault(link["kind"], link)
        figure.add_bar(
            y=list(fullest),
            x=[100 * link["utilisation"] for link in fullest.values()],
            name=plan,
            orientation="h",
            marker_color=colour,
            customdata=[link["name"] for link in fullest.values()],
            hovertemplate=plan + ": %{customdata} %{x:.1f} %<extra></extra>",
        )
    figure.update_layout(xaxis_title="% of capacity over the step", yaxis_autorange="reversed", bargap=0.25)
    return finished(figure, height=420)


def trade_off(predictions: Predictions) -> go.Figure:
    """Balance against fan-out: up is even, left is local; neither is a time."""
    figure = go.Figure()
    for (plan, prediction), colour in zip(predictions.items(), _plan_colours(predictions), strict=True):
        figure.add_scatter(
            x=[prediction.fan_out],
            y=[prediction.balance],
            name=plan,
            mode="markers+text",
            text=[plan],
            textposition="top center",
            cliponaxis=False,
            marker={"size": 14, "color": colour},
            hovertemplate=f"{plan}: fan-out %{{x:.2f}}, balance %{{y:.3f}}<extra></extra>",
        )
    figure.update_layout(xaxis_title="fan-out (ranks per token)", yaxis_title="balance per step", showlegend=False)
    figure.update_xaxes(rangemode="normal")
    return finished(figure, height=320)


def memory(predictions: Predictions) -> go.Figure:
    """Memory of the fullest GPU by part, against its capacity, in GiB."""
    figure = go.Figure()
    plans = list(predictions)
    colours = {"weights": "#4c78a8", "slots": "#54a24b", "kv": "#f58518", "activations": "#b279a2"}
    for part, colour in colours.items():
        values = [(predictions[plan].memory_bytes or {}).get(part, 0) / 2**30 for plan in plans]
        figure.add_bar(
            y=plans,
            x=values,
            name=part,
            orientation="h",
            marker_color=colour,
            hovertemplate="%{y}: " + part + " %{x:.2f} GiB<extra></extra>",
        )
    capacity = max((predictions[plan].memory_bytes or {}).get("capacity", 0) for plan in plans) / 2**30
    title = f"GiB of the fullest GPU, which has {capacity:.0f}"
    figure.update_layout(barmode="stack", xaxis_title=title, yaxis_autorange="reversed")
    return finished(figure, height=110 + 46 * len(plans))


def expert_load(load_LE: npt.NDArray[Any]) -> go.Figure:
    """What the router does: choices of each expert in each layer over the layer's mean."""
    load = np.asarray(load_LE, float)
    return _heatmap(load / load.mean(axis=1, keepdims=True), "expert", "MoE layer", "load ÷ mean", middle=1.0)


def _heatmap(values: npt.NDArray[np.float64], x: str, y: str, what: str, *, middle: float) -> go.Figure:
    figure = go.Figure(
        go.Heatmap(
            z=np.round(values, 3),
            colorscale="RdBu",
            reversescale=True,
            zmin=middle - HEAT_SPREAD,
            zmax=middle + HEAT_SPREAD,
            colorbar={"title": {"text": what, "side": "right"}, "thickness": 12},
            hovertemplate=f"{y} %{{y}}, {x} %{{x}}: %{{z:.2f}} × mean<extra></extra>",
        )
    )
    figure.update_layout(xaxis_title=x, yaxis_title=y)
    return finished(figure, height=120 + 16 * max(8, len(values)))


def _plan_colours(predictions: Predictions) -> Sequence[str]:
    return [PLAN_COLOURS[i % len(PLAN_COLOURS)] for i in range(len(predictions))]


def finished(figure: go.Figure, *, height: int) -> go.Figure:
    """Give a figure the look that all share."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 8, "r": 8, "t": 36, "b": 40},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#1c2430"},
        legend={"traceorder": "normal", "orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
    )
    figure.update_yaxes(automargin=True)
    return figure
