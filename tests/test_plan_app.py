"""The app of notebooks/plan.py: run as a script, and served by marimo and opened in a real headless Chromium."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from .report.browser import browser, find_chromium

# Marimo's parts keep their text in shadow trees, which innerText leaves out.
TEXT = """(function text(node) {
  if (!node || ["STYLE", "SCRIPT"].includes(node.tagName)) return "";
  if (node.nodeType === Node.TEXT_NODE) return node.data + " ";
  return [node.shadowRoot, ...node.childNodes].map(text).join("");
})(document.body)"""
APP = Path(__file__).resolve().parent.parent / "notebooks" / "plan.py"


def test_marimo_finds_nothing_wrong() -> None:
    pytest.importorskip("marimo", reason="marimo is not installed")
    checked = subprocess.run(
        [sys.executable, "-m", "marimo", "check", APP], text=True, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
@pytest.mark.browser
def test_the_app_finds_a_layout_in_a_browser(tmp_path: Path) -> None:
    pytest.importorskip("marimo", reason="marimo is not installed")
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on the path")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    served = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "marimo",
            "run",
            APP,
            "--headless",
            "--no-token",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while not answers(address):
            assert served.poll() is None
            assert time.monotonic() < until, "marimo did not start"
            time.sleep(0.2)
        with browser(executable) as page:
            page.call("Page.navigate", url=address)
            until = time.monotonic() + 240
            while "tokens/s per GPU" not in (said := page.evaluate(TEXT)):
                assert time.monotonic() < until, said
                time.sleep(0.5)
            page.evaluate("new Promise(done => setTimeout(done, 2000))")
            said = page.evaluate(TEXT)
            assert "no layout is better by more" in said
            assert "Traceback" not in said
            page.screenshot(tmp_path / "app.png")
            assert (tmp_path / "app.png").stat().st_size > 20_000
    finally:
        served.terminate()
        served.wait(timeout=30)


def answers(address: str) -> bool:
    """Whether a server is there."""
    try:
        with urllib.request.urlopen(address, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
