import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

# Triton reads this once, when anything first imports it (transformers does): without a GPU its kernels are interpreted.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# The same generated inputs on every run, so that only a change can break a test; `make properties` draws new ones.
settings.register_profile("steady", derandomize=True)
settings.register_profile("search", derandomize=False, print_blob=True)
settings.load_profile("steady")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_traces() -> Path:
    """The folder of shared real traces; tests that want it are skipped where it is absent."""
    folder = Path(os.environ.get("MOECAST_SHARED", ROOT / ".." / "shared")) / "traces"
    if not folder.is_dir():
        pytest.skip(f"no shared traces: {folder} is absent (set MOECAST_SHARED)")
    return folder


@pytest.hookimpl(trylast=True)  # after the random order
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, or one process ends them alone while the others have nothing left to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Close with how many tests were skipped and why, so that a green run does not hide what it left out."""
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    if reasons:
        listed = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"skipped {reasons.total()}: {listed}")


def _reason(report: pytest.TestReport) -> str:
    """The reason given, without pytest's prefix."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")
