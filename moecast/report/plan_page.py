"""The page of a search for a layout: the winner, the front, memory, what more of each resource would save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from moecast.files import write_text
from moecast.report.figures import finished
from moecast.report.html import Picture, render_page

GIB = 2**30


def write_plan_page(answer: Mapping[str, Any], rows: Sequence[tuple[str, str]], path: str | Path) -> None:
    """Write what `moecast plan` found as one self-contained HTML file, whole or not at all.

    Parameters
    ----------
    answer
        As `moecast plan --json` prints it.
    rows
        The names and texts of its table.
    """
    write_text(path, render(answer, rows))


def render(answer: Mapping[str, Any], rows: Sequence[tuple[str, str]]) -> str:
    """The page as text."""
    asked = answer["question"]
    return render_page(
        "plan.html.j2",
        title=asked["model"],
        lead=f"{answer['gpus']} GPUs of {asked['cluster']}, {asked['isl']:,} tokens in, {asked['osl']:,} out",
        model=answer["model"],
        rows=rows,
        all=_pictures(answer),
        launch=answer["launch"],
    )


def _pictures(answer: Mapping[str, Any]) -> list[Picture]:
    pictures = [
        Picture(
            title="Throughput against latency",
            caption="Layouts that none beats in both; those placed by the last rung beside. Hover for what they are.",
            figure=_front(answer),
        )
    ]
    for why in answer["why"]:
        if why["gains"]:
            caption = f"{why['what']}: what twice of each resource would save of it"
            pictures.append(
                Picture(title=f"Gains: {why['what']}", caption=caption, figure=_gains(why["gains"]), wide=False)
            )
    if any(why["memory_bytes"] for why in answer["why"]):
        pictures.append(
            Picture(
                title="Memory", caption="GiB of the fullest GPU, by part", figure=_memory(answer["why"]), wide=False
            )
        )
    return pictures


def _front(answer: Mapping[str, Any]) -> go.Figure:
    figure = go.Figure()
    for name, found, mode in (("front, by bound", answer["front"], "lines+markers"),
                              (f"placed, by {answer['network']}", answer["placed"], "markers"),
                              ("winner", [answer["winner"]], "markers")):  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=[one["tpot_s"] * 1e3 for one in found],
                y=[one["tokens_per_s_per_gpu"] for one in found],
                text=[one["name"] for one in found],
                mode=mode,
                name=name,
                marker={"size": 14 if name == "winner" else 8, "symbol": "star" if name == "winner" else "circle"},
                hovertemplate="%{text}<br>%{x:.3g} ms a token, %{y:,.0f} tokens/s a GPU<extra></extra>",
            )
        )
    if (limit := answer["slo"]["tpot_s"]) is not None:
        figure.add_vline(x=limit * 1e3, line_dash="dot")
    figure.update_layout(xaxis_title="ms per output token", yaxis_title="output tokens/s of a GPU")
    return finished(figure, height=420)


def _gains(gains: Mapping[str, float]) -> go.Figure:
    """A tornado: the largest on top."""
    order = sorted(gains.items(), key=lambda gain: gain[1])
    figure = go.Figure(
        go.Bar(
            x=[100 * gain for _, gain in order], y=[name for name, _ in order], orientation="h",
            hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(xaxis_title="% of the step")
    return finished(figure, height=120 + 24 * max(4, len(order)))


def _memory(whys: Sequence[Mapping[str, Any]]) -> go.Figure:
    figure = go.Figure()
    held = [why for why in whys if why["memory_bytes"]]
    for part in ("weights", "slots", "kv", "activations"):
        figure.add_trace(
            go.Bar(
                x=[why["memory_bytes"][part] / GIB for why in held], y=[why["what"] for why in held], name=part,
                orientation="h", hovertemplate=f"{part}: %{{x:.1f}} GiB<extra></extra>",
            )
        )  # fmt: skip
    figure.add_vline(x=held[0]["memory_bytes"]["usable"] / GIB, line_dash="dot")
    figure.update_layout(barmode="stack", xaxis_title="GiB; dotted: what may be used")
    return finished(figure, height=240)
