"""What every page is made of: one file that opens anywhere and asks the network for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import resources
from itertools import count
from typing import Any

import plotly.graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """A figure with a title and a caption; two that are not wide stand side by side."""

    title: str
    caption: str
    figure: go.Figure
    wide: bool = True

    def html(self, number: int) -> str:
        """The figure as a part of a page on which it has this number: plotly's own ids are drawn at random."""
        config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
        html = to_html(
            self.figure,
            include_plotlyjs=False,
            full_html=False,
            config=config,
            default_width="100%",
            div_id=f"picture-{number}",
        )
        return str(html)


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
        next_number=partial(next, count(1)),
        **values,
    )
