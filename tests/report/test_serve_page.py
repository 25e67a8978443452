"""The page of a run of requests as a reader opens it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moecast.report import serve_figures, write_serve_page
from moecast.sim.serving import PrefillPool, Served, parse_slo, serve
from tests.serving.test_serve import CLOSED, REQUESTS, question

from .browser import browser, find_chromium


@pytest.fixture(scope="module")
def runs() -> dict[str, Served]:
    apart = PrefillPool(plan=question(ep=4).plan.with_(gpu_of_rank=(4, 5, 6, 7)))
    slo = parse_slo("ttft=20ms,tpot=6ms")
    return {
        "one": serve(question(), REQUESTS, arrivals=CLOSED, slo=slo),
        "apart": serve(question(ep=4), REQUESTS, arrivals=CLOSED, prefill=apart),
        "single": serve(question(), REQUESTS[:1]),
    }


@pytest.mark.parametrize("name", ["one", "apart", "single"])
def test_same_run_same_page_that_asks_for_nothing(runs: dict[str, Served], name: str, tmp_path: Path) -> None:
    for file in ("a.html", "b.html"):
        write_serve_page(runs[name], tmp_path / file)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert (tmp_path / "b.html").read_text(encoding="utf-8") == text
    assert "<script src" not in text
    assert f"Limited by {runs[name].limited_by}" in text.replace("&#39;", "'")
    assert ("decode pool" in text) == (name == "apart")


def test_goodput_of_the_promise_is_what_was_kept(runs: dict[str, Served]) -> None:
    served = runs["one"]
    [heat] = serve_figures.goodput(served).data
    counted = served.measures.counted()
    for y in (0, 9, 31):
        for x in (0, 15, 31):
            kept = (1e3 * counted["ttft"] <= heat.x[x]) & (1e3 * counted["tpot"] <= heat.y[y])
            assert heat.z[y][x] == pytest.approx(100 * kept.mean(), abs=0.01)
    assert heat.z[-1][-1] == 100


def test_pictures_say_what_the_run_says(runs: dict[str, Served]) -> None:
    served = runs["one"]
    ttft, _ = serve_figures.latencies(served, ("ttft", "e2e")).data
    assert ttft.x[50] == pytest.approx(1e3 * served.latency["ttft"].p50_s)
    over = served.over_time["engine"]
    parts = serve_figures.doing_over_time(over, 1, served.duration_s).data
    np.testing.assert_allclose(np.sum([part.y for part in parts], axis=0), 100, atol=0.1)
    found = serve_figures.step_times(served, "engine").data
    assert sum(sum(line.customdata) for line in found) == served.iterations


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(runs: dict[str, Served], width: int, tmp_path: Path) -> None:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on the path")
    with browser(executable) as page:
        for name, served in runs.items():
            path = tmp_path / f"{name}.html"
            write_serve_page(served, path)
            page.open(path, width=width)
            assert page.complaints == []
            assert [url for url in page.requests if not url.startswith("data:")][-1] == path.as_uri()
            plots = page.evaluate("document.querySelectorAll('.js-plotly-plot').length")
            assert plots == (11 if name == "apart" else 8)
            assert page.evaluate("document.querySelectorAll('.js-plotly-plot:has(svg.main-svg)').length") == plots
            assert page.evaluate("document.documentElement.scrollWidth") <= width
