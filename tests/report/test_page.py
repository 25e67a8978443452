"""The report as a reader opens it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .browser import browser, find_chromium


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's report, written by the command line."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run([sys.executable, "-m", "moecast", "demo", "--out", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "report.html"


@pytest.mark.slow
def test_page_asks_for_nothing(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    page, script = text.split("<script>", 1)[0], text.rsplit("</script>", 1)[1]
    for part in (page, script):
        assert "http://" not in part
        assert "https://" not in part
    assert "<script src" not in text
    assert '<link rel="stylesheet"' not in text


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(report: Path, width: int, tmp_path: Path) -> None:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on the path")
    with browser(executable) as page:
        page.open(report, width=width)
        assert page.complaints == []
        assert [url for url in page.requests if not url.startswith("data:")] == [report.resolve().as_uri()]
        plots = page.evaluate("document.querySelectorAll('.js-plotly-plot').length")
        drawn = page.evaluate("document.querySelectorAll('.js-plotly-plot:has(svg.main-svg)').length")
        assert plots >= 15
        assert drawn == plots
        heights = page.evaluate("[...document.querySelectorAll('.js-plotly-plot')].map(p => p.offsetHeight)")
        assert min(heights) >= 80
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 50_000
