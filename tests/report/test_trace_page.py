"""The page of a trace as a reader opens it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from moecast.report import trace_figures, write_trace_page
from moecast.traces import (
    NO_CHOICE,
    RoutingTrace,
    TraceProfile,
    profile_trace,
    read_trace,
    shipped_trace_path,
    write_trace,
)

from .browser import browser, find_chromium

DRAWN = [
    "load", "sorted_load", "coactivation", "transition", "affinity", "fan_out", "segments", "chunks", "dependence",
    "windows", "topics", "stability", "empty_choices", "placements",
]  # fmt: skip


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    return read_trace(shipped_trace_path()).select(slice(0, 12_000))


@pytest.fixture(scope="module")
def profile(trace: RoutingTrace) -> TraceProfile:
    return profile_trace(trace)


def test_page_asks_for_nothing_and_escapes_what_the_trace_says(trace: RoutingTrace, tmp_path: Path) -> None:
    meta = dataclasses.replace(trace.meta, model="<script>alert(1)</script>", notes="<img src=x onerror=alert(1)>")
    write_trace_page(profile_trace(dataclasses.replace(trace, meta=meta)), tmp_path / "t.html")
    text = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in text
    assert "<img" not in text.rsplit("</script>", 1)[1]
    assert "<script src" not in text
    assert '<link rel="stylesheet"' not in text


def test_same_profile_same_page(profile: TraceProfile, tmp_path: Path) -> None:
    """Invariant 6: plotly's own ids would differ."""
    for name in ("a.html", "b.html"):
        write_trace_page(profile, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(profile: TraceProfile, width: int, tmp_path: Path) -> None:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on the path")
    write_trace_page(profile, tmp_path / "t.html")
    with browser(executable) as page:
        page.open(tmp_path / "t.html", width=width)
        assert page.complaints == []
        assert [url for url in page.requests if not url.startswith("data:")] == [(tmp_path / "t.html").as_uri()]
        plots = page.evaluate("document.querySelectorAll('.js-plotly-plot').length")
        assert plots >= 12
        assert page.evaluate("document.querySelectorAll('.js-plotly-plot:has(svg.main-svg)').length") == plots
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", DRAWN)
def test_every_picture_of_the_smallest_traces(trace: RoutingTrace, name: str) -> None:
    """One layer, one sequence, no topics, a layer without any choice: nothing to show is no error."""
    one = trace.select(trace.sequence_T == trace.sequence_T[0])
    experts_TLK = one.experts_TLK[:, :2].copy()
    experts_TLK[:, 1] = NO_CHOICE
    small = dataclasses.replace(
        one,
        meta=dataclasses.replace(one.meta, layers=2, layer_ids=None),
        experts_TLK=experts_TLK,
        topics=(),
        topic_T=np.full(one.n_tokens, -1, np.int16),
        token_id_T=None,
    )
    assert isinstance(getattr(trace_figures, name)(profile_trace(small)), go.Figure)


def test_random_choices_fan_out_as_the_closed_form_says(trace: RoutingTrace) -> None:
    rng = np.random.default_rng(0)
    experts_TLK = rng.random((4_000, 1, 64)).argsort(axis=2)[:, :, :6].astype(np.uint16)
    meta = dataclasses.replace(trace.meta, layers=1, layer_ids=None)
    part = dataclasses.replace(trace.select(slice(0, 4_000)), meta=meta, experts_TLK=experts_TLK)
    measured, chance = trace_figures.fan_out(profile_trace(part)).data
    assert np.allclose(measured.y, chance.y, atol=0.03)
    assert sum(chance.y) == pytest.approx(1)


def test_a_page_of_a_plan_names_it_wherever_placement_counts(profile: TraceProfile, tmp_path: Path) -> None:
    write_trace_page(profile, tmp_path / "order.html")
    write_trace_page(profile, tmp_path / "plan.html", plan="best.json")
    order, plan = ((tmp_path / name).read_text(encoding="utf-8") for name in ("order.html", "plan.html"))
    assert "mean ÷ max load of 8 ranks, experts in order" in order
    assert "mean ÷ max load of 8 ranks, as best.json places experts" in plan
    assert "random choices" in order  # dealt to experts in order: not what a plan is to be compared with
    assert "random choices" not in plan
    assert [bars.name for bars in trace_figures.placements(profile, plan="best.json").data][-1] == "best.json"


def test_empty_choices_are_shown_where_positions_begin_late(trace: RoutingTrace, tmp_path: Path) -> None:
    """As in a decode phase: no token stands at the first positions."""
    experts_TLK = trace.experts_TLK.copy()
    experts_TLK[::3, :, -1] = NO_CHOICE
    late = dataclasses.replace(trace, experts_TLK=experts_TLK, position_T=trace.position_T + np.uint32(40))
    write_trace_page(profile_trace(late), tmp_path / "t.html")
    assert "Dropped tokens, null experts" in (tmp_path / "t.html").read_text(encoding="utf-8")


def test_the_command_writes_the_page(trace: RoutingTrace, tmp_path: Path) -> None:
    write_trace(trace.select(slice(0, 3_000)), tmp_path / "t.parquet")
    command = [sys.executable, "-m", "moecast", "trace", "stats", "t.parquet", "--html", "t.html"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Who meets in a token" in (tmp_path / "t.html").read_text(encoding="utf-8")
    done = subprocess.run([*command, "--quick"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "moecast: --html = 't.html': the pictures need more than counts; leave --quick out\n"
