"""What every page is made of: one file that opens anywhere and asks the network for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import plotly.graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure with a title and a caption; two that are not wide stand side by side."""

    title: str
    caption: str
    html: str
    wide: bool = True

    @classmethod
    def of(cls, figure: go.Figure, *, title: str, caption: str, wide: bool = True) -> Picture:
        """The picture of a plotly figure."""
        config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
        html = to_html(figure, include_plotlyjs=False, full_html=False, config=config, default_width="100%")
        return cls(title=title, caption=caption, html=str(html), wide=wide)


def render_page(template: str, *, title: str, **values: Any) -> str:
    """The page as text: a template of this package, with the style and the drawing library inside."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("moecast.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        title=title,
        style=resources.files("moecast.report").joinpath("style.css").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
        **values,
    )
