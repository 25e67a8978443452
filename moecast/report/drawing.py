"""How the pictures of a trace are drawn: heat maps of ratios, orders that put like beside like, shades."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from moecast.report.figures import finished

Floats = npt.NDArray[np.float64]

_MOST_LIFT = 4.0  # where the colours of a lift end


def lifts(
    lift: Floats,
    rows: Sequence[str],
    columns: Sequence[str] | None = None,
    *,
    x: str,
    y: str,
    what: str,
    square: bool,
) -> go.Figure:
    """A heat map of ratios whose colours treat halving and doubling alike."""
    ticks = [1 / _MOST_LIFT, 0.5, 1, 2, _MOST_LIFT]
    end = math.log2(_MOST_LIFT)
    columns = [str(index) for index in range(lift.shape[1])] if columns is None else columns
    figure = go.Figure(
        go.Heatmap(
            z=np.round(np.log2(np.clip(lift, 2.0**-6, 2.0**6)), 3),
            x=list(columns),
            y=list(rows),
            customdata=np.round(lift, 3),
            colorscale="RdBu",
            reversescale=True,
            zmin=-end,
            zmax=end,
            colorbar={
                "title": {"text": what, "side": "right"},
                "thickness": 12,
                "tickvals": [math.log2(tick) for tick in ticks],
                "ticktext": [f"{tick:g}×" for tick in ticks],
            },
            hovertemplate=f"{y} %{{y}}, {x} %{{x}}: %{{customdata:.2f}} ×<extra></extra>",
        )
    )
    figure.update_layout(xaxis_title=x, yaxis_title=y)
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed" if square else None)
    return finished(figure, height=480 if square else 120 + 16 * max(8, len(lift)))


def alike_together(lift: Floats) -> npt.NDArray[np.int64]:
    """An order of the rows in which alike ones are neighbours: the leaves of an average-linkage tree, best ordered."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import pdist

    if len(lift) < 3:
        return np.arange(len(lift))
    rows = np.log2(np.clip(lift, 2.0**-4, 2.0**4))
    apart = pdist(rows)
    tree = linkage(apart, "average")
    return np.asarray(leaves_list(optimal_leaf_ordering(tree, apart) if len(lift) <= 512 else tree), np.int64)


def centres(lift: Floats) -> Floats:
    """Where along the rows each column's excess lies."""
    excess = np.clip(lift - 1, 0, None) + 1e-9
    return np.asarray((np.arange(len(lift))[:, None] * excess).sum(axis=0) / excess.sum(axis=0))


def divided(part: Floats, whole: Floats) -> Floats:
    """The ratio; 1 where nothing is expected."""
    ratio = np.ones(part.shape)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def shades(count: int) -> list[str]:
    """Colours from light to dark."""
    from plotly.colors import sample_colorscale

    points: list[Any] = list(np.linspace(0.25, 1.0, max(count, 1)))
    return list(sample_colorscale("Blues", points))
