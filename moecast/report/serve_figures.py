"""Pictures of a run of requests: latencies, promises that are kept, state over time, iterations by their batch.

Axes: B bin of time, Q request, X, Y times to the first token and per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from moecast.report.figures import PLAN_COLOURS, finished
from moecast.sim.serving import Served
from moecast.sim.serving.history import OverTime

RUNNING, WAITING, PROMPTS, DECODE, IDLE = "#2456c7", "#e45756", "#f58518", "#54a24b", "#c8cdd3"
NAMES = {"ttft": "time to first token", "e2e": "end to end", "tpot": "time per output token", "itl": "between tokens"}
GRID = 32


def latencies(served: Served, measures: Sequence[str]) -> go.Figure:
    """Which part of requests (of ITL: of gaps) take no longer."""
    figure = go.Figure()
    for name, colour in zip(measures, PLAN_COLOURS[1:], strict=False):
        times_ms = 1e3 * np.array(served.quantiles_s.get(name, ()))
        figure.add_scatter(
            x=times_ms,
            y=list(range(len(times_ms))),
            name=NAMES[name],
            mode="lines",
            line={"color": colour},
            hovertemplate=f"{NAMES[name]}: %{{y}} % within %{{x:.4g}} ms<extra></extra>",
        )
        if name in served.promised_s:
            figure.add_vline(x=1e3 * served.promised_s[name], line_dash="dot", line_color=colour)
    figure.update_layout(yaxis_title="% of requests", yaxis_range=[0, 100])
    figure.update_xaxes(title="ms; dotted: promised" if served.promised_s else "ms", type="log", dtick="D1")
    spread = [1e3 * time_s for name in measures for time_s in served.quantiles_s.get(name, ()) if time_s > 0]
    if spread and max(spread) < 20 * min(spread):
        figure.update_xaxes(type="linear", dtick=None, rangemode="tozero")
    else:
        figure.update_xaxes(dtick=1)
    return finished(figure, height=320)


def goodput(served: Served) -> go.Figure:
    """Which part of requests keep a promise of both times, for all promises."""
    counted = served.measures.counted()
    axes = [1e3 * _grid(counted[name]) for name in ("ttft", "tpot")]
    ttft_X, tpot_Y = axes
    kept_YX = _kept(counted["ttft"] * 1e3, counted["tpot"] * 1e3, ttft_X, tpot_Y)
    figure = go.Figure(
        go.Heatmap(
            x=ttft_X,
            y=tpot_Y,
            z=np.round(100 * kept_YX, 2),
            colorscale="Blues",
            zmin=0,
            zmax=100,
            colorbar={"title": {"text": "% kept", "side": "right"}, "thickness": 12},
            hovertemplate="TTFT ≤ %{x:.4g} ms, TPOT ≤ %{y:.4g} ms: %{z:.1f} %<extra></extra>",
        )
    )
    promised = {name: 1e3 * time_s for name, time_s in served.promised_s.items()}
    if "ttft" in promised:
        figure.add_vline(x=min(promised["ttft"], ttft_X[-1]), line_dash="dot")
    if "tpot" in promised:
        figure.add_hline(y=min(promised["tpot"], tpot_Y[-1]), line_dash="dot")
    figure.update_layout(xaxis_title="TTFT promised, ms", yaxis_title="TPOT promised, ms")
    figure.update_xaxes(range=[ttft_X[0], ttft_X[-1]])
    figure.update_yaxes(range=[tpot_Y[0], tpot_Y[-1]])
    return finished(figure, height=320)


def _grid(times_Q: np.ndarray) -> np.ndarray:
    low, high = float(times_Q.min()), float(times_Q.max())
    pad = 0.05 * (high - low) or 0.05 * max(high, 1e-9)
    return np.linspace(max(0.0, low - pad), high + pad, GRID)


def _kept(ttft_Q: np.ndarray, tpot_Q: np.ndarray, ttft_X: np.ndarray, tpot_Y: np.ndarray) -> np.ndarray:
    """The part of requests within both [Y, X]."""
    counts_XY, _, _ = np.histogram2d(ttft_Q, tpot_Q, bins=[[-np.inf, *ttft_X], [-np.inf, *tpot_Y]])
    return np.asarray(counts_XY.cumsum(axis=0).cumsum(axis=1).T / len(ttft_Q))


def requests_over_time(over: OverTime) -> go.Figure:
    """Who is in flight and who waits."""
    figure = go.Figure()
    for name, value_B, colour in (("in flight", over.running, RUNNING), ("waiting", over.waiting, WAITING)):
        figure.add_scatter(
            x=over.times_s,
            y=np.round(value_B, 3),
            name=name,
            mode="lines",
            line={"color": colour, "width": 1.5},
            hovertemplate=f"%{{x:.4g}} s: %{{y:.4g}} {name}<extra></extra>",
        )
    figure.update_layout(xaxis_title="s", yaxis_title="requests", yaxis_rangemode="tozero")
    return finished(figure, height=300)


def kv_over_time(pools: Mapping[str, OverTime]) -> go.Figure:
    """Blocks that requests hold."""
    figure = go.Figure()
    for (name, over), colour in zip(pools.items(), (RUNNING, PROMPTS), strict=False):
        figure.add_scatter(
            x=over.times_s,
            y=np.round(100 * np.array(over.kv_used), 3),
            name=name,
            mode="lines",
            line={"color": colour, "width": 1.5},
            hovertemplate=f"{name}, %{{x:.4g}} s: %{{y:.1f}} %<extra></extra>",
        )
    most = max((max(over.kv_used) for over in pools.values()), default=0.0)
    figure.update_layout(xaxis_title="s", yaxis_title="% of KV blocks", showlegend=len(pools) > 1)
    figure.update_yaxes(range=[0, 105 if most > 0.5 else max(1.0, 110 * most)])
    return finished(figure, height=300)


def doing_over_time(over: OverTime, instances: int, duration_s: float) -> go.Figure:
    """What instances do: iterations with prompts, decode alone, nothing."""
    length_B = np.full(len(over.running), over.bin_s)
    length_B[-1] = max(duration_s - over.bin_s * (len(length_B) - 1), 1e-12)
    prompt_B, decode_B = (100 * np.array(of) / (length_B * instances) for of in (over.prompt_s, over.decode_s))
    figure = go.Figure()
    for name, part_B, colour in (
        ("with prompts", prompt_B, PROMPTS),
        ("decode alone", decode_B, DECODE),
        ("idle", np.clip(100 - prompt_B - decode_B, 0, None), IDLE),
    ):
        figure.add_scatter(
            x=over.times_s,
            y=np.round(part_B, 2),
            name=name,
            mode="lines",
            stackgroup="time",
            line={"color": colour, "width": 0},
            fillcolor=colour,
            hovertemplate=f"%{{x:.4g}} s: {name} %{{y:.1f}} %<extra></extra>",
        )
    figure.update_layout(xaxis_title="s", yaxis_title="% of the time", yaxis_range=[0, 100])
    return finished(figure, height=300)


def step_times(served: Served, pool: str) -> go.Figure:
    """How long iterations take by how many requests are in them; bars from the shortest to the longest."""
    figure = go.Figure()
    for kind, colour in (("decode", DECODE), ("with prompts", PROMPTS)):
        found = [of for of in served.step_times[pool] if of.kind == kind]
        if not found:
            continue
        mean_ms = np.array([1e3 * of.mean_s for of in found])
        most_ms, least_ms = (np.array([1e3 * getattr(of, name) for of in found]) for name in ("most_s", "least_s"))
        figure.add_scatter(
            x=[round(of.batch, 2) for of in found],
            y=mean_ms,
            name=kind,
            mode="lines+markers",
            marker={"color": colour},
            error_y={"array": most_ms - mean_ms, "arrayminus": mean_ms - least_ms, "width": 0, "thickness": 1},
            customdata=[of.iterations for of in found],
            hovertemplate=f"{kind}, %{{x:.4g}} requests: %{{y:.4g}} ms mean of %{{customdata:,}}<extra></extra>",
        )
    figure.update_layout(xaxis_title="requests in flight, of an instance", yaxis_title="ms", yaxis_rangemode="tozero")
    return finished(figure, height=320)


def shares(limits: Mapping[str, float]) -> go.Figure:
    """Parts of the time, of which several may hold at once."""
    names = list(limits)
    figure = go.Figure(
        go.Bar(
            x=[round(100 * limits[name], 2) for name in names],
            y=names,
            orientation="h",
            marker_color=RUNNING,
            hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
        )
    )
    figure.update_layout(xaxis_title="% of the time", yaxis_autorange="reversed")
    figure.update_xaxes(range=[0, 100])
    return finished(figure, height=90 + 24 * max(4, len(names)))
