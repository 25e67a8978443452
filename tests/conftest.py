import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_traces() -> Path:
    """The folder of shared real traces; tests that want it are skipped where it is absent."""
    folder = Path(os.environ.get("MOECAST_SHARED", ROOT / ".." / "shared")) / "traces"
    if not folder.is_dir():
        pytest.skip(f"no shared traces: {folder} is absent (set MOECAST_SHARED)")
    return folder
