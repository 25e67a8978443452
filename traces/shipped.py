"""The real routing trace that comes with moecast."""

from __future__ import annotations

from pathlib import Path

from moecast.errors import MoecastError

_FOLDER = Path(__file__).parent / "shipped"


def shipped_trace_path(name: str | None = None) -> Path:
    """Find the trace in the installed package: the only one, or the one called `name`.

    Raises
    ------
    MoecastError
        There is none of that name.
    """
    found = sorted(_FOLDER.glob("*.parquet"))
    if name is not None:
        found = [path for path in found if path.stem == name]
    if not found:
        raise MoecastError("no such trace comes with this installation", field="shipped trace", value=name)
    return found[0]
