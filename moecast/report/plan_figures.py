"""Pictures of a search for a layout: the front, memory, what the answer hangs on, and the winner's step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from moecast.report.figures import PART_COLOURS, finished

GIB = 2**30
WORSE, BETTER = "#e45756", "#4c78a8"
MEMORY_COLOURS = {"weights": "#4c78a8", "slots": "#54a24b", "kv": "#f58518", "activations": "#b279a2"}
LONGEST = 72
"""Letters of a line of a label."""


def front(answer: Mapping[str, Any]) -> go.Figure:
    """Throughput against time per token: those that none beats in both, those placed, the winner with its interval."""
    figure = go.Figure()
    series = (
        ("front, by bound", answer["front"], "lines+markers", "circle", 8, "#7a8594"),
        (f"placed, by {answer['network']}", answer["placed"], "markers", "diamond", 9, "#f58518"),
        ("winner", [answer["winner"]], "markers", "star", 16, "#0b7a4b"),
    )
    for name, found, mode, symbol, size, colour in series:
        figure.add_scatter(
            x=[one["tpot_s"] * 1e3 for one in found],
            y=[one["tokens_per_s_per_gpu"] for one in found],
            text=[wrapped(one["name"]) for one in found],
            mode=mode,
            name=name,
            marker={"size": size, "symbol": symbol, "color": colour},
            line={"color": colour},
            hovertemplate="%{text}<br>%{x:.3g} ms a token, %{y:,.0f} tokens/s a GPU<extra></extra>",
        )
    _add_interval(figure, answer["winner"])
    if (limit := answer["slo"]["tpot_s"]) is not None:
        figure.add_vline(x=limit * 1e3, line_dash="dot", annotation_text="limit", annotation_position="bottom right")
    figure.update_layout(xaxis_title="ms per output token", yaxis_title="output tokens/s of a GPU")
    figure.update_yaxes(rangemode="tozero")
    return finished(figure, height=440)


def _add_interval(figure: go.Figure, winner: Mapping[str, Any]) -> None:
    """The winner's 80 % interval as bars about it, where it has one."""
    for axis, name, scale in (("error_x", "tpot_s", 1e3), ("error_y", "tokens_per_s_per_gpu", 1.0)):
        ends = winner["interval"][name]
        if ends is not None:
            low, high = (abs(end - winner[name]) * scale for end in ends)
            bars = {"type": "data", "symmetric": False, "array": [high], "arrayminus": [low], "thickness": 1.5}
            figure.data[-1].update({axis: bars})


def tornado(moves: Sequence[Mapping[str, Any]], now: float, *, axis: str = "output tokens/s of a GPU") -> go.Figure:
    """What the winner serves when each parameter moves by its own error, the largest change on top.

    Hollow bars miss a limit on latency; a star marks ends at which another layout is best.
    """
    figure = go.Figure()
    ends = [(move["parameter"], end) for move in reversed(moves) for end in move["ends"]]
    for better, name, colour in ((False, "less", WORSE), (True, "more", BETTER)):
        of = [(parameter, end) for parameter, end in ends if (end["change"] > 0) == better]
        figure.add_bar(
            y=[parameter for parameter, _ in of],
            x=[end["tokens_per_s_per_gpu"] - now for _, end in of],
            base=now,
            orientation="h",
            name=name,
            text=["★" if end["another"] else "" for _, end in of],
            textposition="outside",
            cliponaxis=False,
            marker={
                "color": [colour if end["meets"] else "rgba(255,255,255,0.9)" for _, end in of],
                "line": {"color": colour, "width": 1.5},
            },
            customdata=[[end["end"], end["tokens_per_s_per_gpu"], _kept(end), wrapped(_best(end))] for _, end in of],
            hovertemplate="%{y}, %{customdata[0]}: %{customdata[1]:,.0f} tokens/s a GPU, %{customdata[2]}<br>"
            "best there: %{customdata[3]}<extra></extra>",
        )
    figure.add_vline(x=now, line_color="#1c2430", line_width=1)
    figure.update_layout(barmode="overlay", xaxis_title=axis, bargap=0.3)
    return finished(figure, height=130 + 30 * max(len(moves), 3))


def _kept(end: Mapping[str, Any]) -> str:
    if "step_time_s" in end:  # of training, which has no limits
        return f"{end['step_time_s']:.3g} s a step"
    return "limits kept" if end["meets"] else f"limits missed: {end['tpot_s'] * 1e3:.3g} ms a token"


def _best(end: Mapping[str, Any]) -> str:
    if end["best"] is None:
        return "none of those asked keeps the limits"
    return f"{end['best']}, {end['best_tokens_per_s_per_gpu']:,.0f} tokens/s a GPU"


def gains(saved: Mapping[str, float]) -> go.Figure:
    """What twice of each resource saves, the largest on top."""
    order = sorted(saved.items(), key=lambda gain: gain[1])
    figure = go.Figure()
    figure.add_bar(
        x=[100 * gain for _, gain in order],
        y=[name for name, _ in order],
        orientation="h",
        marker_color=BETTER,
        hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
    )
    figure.update_layout(xaxis_title="% of the step")
    return finished(figure, height=120 + 24 * max(4, len(order)))


def memory(held: Sequence[tuple[str, Mapping[str, int]]], colours: Mapping[str, str] = MEMORY_COLOURS) -> go.Figure:
    """GiB of the fullest GPU by part, against what may be used; `colours`: of the parts."""
    figure = go.Figure()
    for part, colour in colours.items():
        figure.add_bar(
            x=[bytes_of[part] / GIB for _, bytes_of in held],
            y=[name for name, _ in held],
            name=part,
            orientation="h",
            marker_color=colour,
            hovertemplate=f"{part}: %{{x:.1f}} GiB<extra></extra>",
        )
    usable = held[0][1]["usable"] / GIB
    figure.add_vline(x=usable, line_dash="dot")
    figure.update_layout(barmode="stack", xaxis_title=f"GiB, of {usable:.0f} (dotted)")
    figure.update_yaxes(autorange="reversed")
    return finished(figure, height=130 + 46 * len(held))


def timeline(step: Mapping[str, Any]) -> go.Figure:
    """What each of some ranks does through a few layers; grey is waiting for peers."""
    figure = go.Figure()
    streams = list(dict.fromkeys(span["stream"] for span in step["spans"]))
    start_s = min(span["start_s"] for span in step["spans"])
    rows: dict[str, list[tuple[str, float, float, int]]] = {part: [] for part in PART_COLOURS}
    for span in step["spans"]:
        row = f"rank {span['rank']}" + (f", {span['stream']}" if len(streams) > 1 else "")
        begin, idle = span["start_s"] - start_s, span["idle_s"]
        rows["idle"].append((row, begin, idle, span["layer"]))
        rows[span["kind"]].append((row, begin + idle, span["end_s"] - span["start_s"] - idle, span["layer"]))
    for part, colour in PART_COLOURS.items():
        of = [one for one in rows[part] if one[2] > 0]
        figure.add_bar(
            y=[row for row, *_ in of],
            base=[begin * 1e6 for _, begin, _, _ in of],
            x=[length * 1e6 for _, _, length, _ in of],
            name=part,
            orientation="h",
            marker_color=colour,
            customdata=[layer for *_, layer in of],
            hovertemplate=f"{part}, MoE layer %{{customdata}}: %{{x:.1f}} µs<extra>%{{y}}</extra>",
        )
    order = [
        f"rank {rank}" + (f", {stream}" if len(streams) > 1 else "") for rank in step["ranks"] for stream in streams
    ]
    figure.update_layout(barmode="overlay", bargap=0.2, xaxis_title="µs")
    figure.update_yaxes(categoryorder="array", categoryarray=order, autorange="reversed")
    return finished(figure, height=130 + 26 * len(order))


def wrapped(text: str) -> str:
    """Text in lines that a hover label can hold."""
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > LONGEST:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "<br>".join([*lines, line])
