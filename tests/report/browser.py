"""A real headless Chromium, driven over its debugging protocol: what a page says, asks for and shows."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

FLAGS = (
    "--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)  # fmt: skip


def find_chromium() -> str | None:
    """The browser's path, or None where there is none."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


@dataclass
class Page:
    """What happened while a page was open."""

    socket: websocket.WebSocket
    complaints: list[str] = field(default_factory=list)  # console errors and warnings, uncaught exceptions
    requests: list[str] = field(default_factory=list)
    _last: int = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call of the protocol; events that come meanwhile are noted."""
        self._last += 1
        self.socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self._last:
                assert "error" not in message, message
                return dict(message["result"])
            self._note(message)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, path: Path, *, width: int, height: int = 900) -> None:
        """Load a file at a window size and wait until it has settled."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + 60
        while self.evaluate("document.readyState") != "complete":
            assert time.monotonic() < deadline, "the page did not load"
            time.sleep(0.05)
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 500)))")

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def _note(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(parameters["entry"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])


@contextmanager
def browser(executable: str) -> Iterator[Page]:
    """Start a browser with an empty profile and yield its one page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [executable, *FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            page = Page(websocket.create_connection(_page_address(Path(profile)), timeout=60))
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            yield page
            page.socket.close()
        finally:
            process.terminate()
            process.wait(timeout=20)


def _page_address(profile: Path) -> str:
    """Where the page listens: the port stands in a file of the profile once the browser is up."""
    from urllib.request import urlopen

    port_file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + 60
    while not (port_file.exists() and port_file.read_text().strip()):
        assert time.monotonic() < deadline, "the browser did not start"
        time.sleep(0.05)
    port = port_file.read_text().split()[0]
    with urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
        pages = json.load(answer)
    return str(next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"))


def assert_page_is_whole(executable: str, path: Path, *, width: int) -> int:
    """How many plots a page has: nothing complains or is fetched, all are drawn, nothing scrolls sideways."""
    with browser(executable) as page:
        page.open(path, width=width)
        assert page.complaints == []
        assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
        plots: int = page.evaluate("document.querySelectorAll('.js-plotly-plot').length")
        assert page.evaluate("document.querySelectorAll('.js-plotly-plot:has(svg.main-svg)').length") == plots
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    return plots
