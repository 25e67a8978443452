"""Errors of fitted kernels on rows that set nothing, as they stand beside their parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

FAMILIES = (
    "gemm",
    "grouped",
    "mla_bmm",
    "quantise",
    "attention",
    "mla",
    "mla_module",
    "linear_attention",
    "collectives",
    "dispatch",
)
"""Files of parameters, `fitted/<family>.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineErrors:
    """Errors of one GPU, engine, version and kind (element type, kernel or phase).

    Parameters
    ----------
    fitted, rows
        Rows that set the parameters, and rows in all.
    median, p90, bias
        Of the size of relative errors of time, and the median with its sign.
    """

    gpu: str
    engine: str
    version: str
    kind: str
    fitted: int
    rows: int
    median: float
    p90: float
    bias: float

    @property
    def name(self) -> str:
        """GPU, engine, version and kind, as far as there are several."""
        parts = (self.gpu, self.engine, "" if self.version == "0" else self.version, self.kind)
        return " ".join(part for part in parts if part and part != "any")


@cache
def fitted_errors(family: str) -> tuple[LineErrors, ...]:
    """The lines of a family of `FAMILIES` that have errors."""
    text = resources.files("moecast.sim.cost").joinpath(f"fitted/{family}.json").read_text(encoding="utf-8")
    return tuple(
        LineErrors(
            gpu=entry["gpu"],
            engine=entry["engine"],
            version=entry["version"],
            kind=entry["kind"],
            fitted=entry["fitted"],
            rows=entry["rows"],
            median=entry["median"],
            p90=entry["p90"],
            bias=entry["bias"],
        )
        for entry in json.loads(text)["entries"]
        if entry["median"] is not None
    )
