"""How many measured rows set the parameters of a family of kernels."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources


@cache
def rows_fitted(family: str) -> int:
    """Rows that set what stands in `fitted/<family>.json`; a row that set two entries counts twice."""
    text = resources.files("moecast.sim.cost").joinpath(f"fitted/{family}.json").read_text(encoding="utf-8")
    return sum(entry.get("fitted", entry.get("rows_fitted", 0)) for entry in json.loads(text)["entries"])
