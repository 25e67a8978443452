"""Known errors: what the forecast said of rows that set no parameter, shipped as data.

`python benchmarks/coverage.py --write` writes `known_errors.json`, from `moecast validate
published`; with `--steady` it writes `steady_errors.json`, with `--requests` `request_errors.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from moecast.errors import MoecastError

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRow:
    """A measured row that set nothing, and how far off its forecast was.

    Parameters
    ----------
    source
        Whose it is: "engine on GPU" of serving rows, else who measured it.
    configuration
        What it shares with rows that are no witnesses of their own: they differ in concurrency or
        size alone.
    setting
        What it shares with rows that differ in layout or batch alone; empty where it is compared
        with none.
    predicted_s
        The forecast.
    error
        ln (measured ÷ predicted): below 0 where the forecast was too long.
    """

    id: str
    family: str
    source: str
    configuration: str
    setting: str
    predicted_s: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFamily:
    """A family's errors: of rows, or of a line of kernel tables, whose rows are too many to ship.

    Parameters
    ----------
    asked, answered, fitted
        Rows; those with a forecast; those that may have set parameters and do not count.
    rows, configurations, sources
        Rows that count, the setups they are of, and who measured them.
    median, p90, bias
        Of the size of relative errors of time, and the median with its sign; None where no row
        counts.
    low, high
        10 % and 90 % quantiles of ln (measured ÷ predicted), of kernel tables only.
    """

    name: str
    asked: int
    answered: int
    fitted: int
    rows: int
    configurations: int
    sources: int
    median: float | None
    p90: float | None
    bias: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedErrors:
    """How far off ratios of two forecasts are: 80 % of |ln (measured ratio ÷ predicted ratio)| lie below a line.

    The line is `floor + slope · |ln predicted ratio|`.

    Parameters
    ----------
    pairs, settings
        Pairs of rows, and the settings that they are of.
    covered
        The part of pairs below the line when their own setting is left out of it.
    """

    floor: float
    slope: float
    pairs: int
    settings: int
    covered: float

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.floor < 0 or self.slope < 0:
            raise ValueError(f"floor = {self.floor}, slope = {self.slope}: not below 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownErrors:
    """All that is known of the forecast's errors.

    Parameters
    ----------
    network
        The rung that answered rows of serving and training.
    pairs
        By what the two rows of a pair differ in: "batch" or "layout".
    kernels
        Lines of kernel tables: "family: GPU engine version type".
    """

    network: str
    families: tuple[KnownFamily, ...]
    rows: tuple[JudgedRow, ...]
    pairs: Mapping[str, PairedErrors]
    kernels: tuple[KnownFamily, ...] = ()

    def family(self, name: str) -> KnownFamily | None:
        """A family by name; None where it is not known."""
        return next((family for family in self.families if family.name == name), None)

    def of(self, family: str) -> tuple[JudgedRow, ...]:
        """The rows of a family."""
        return tuple(row for row in self.rows if row.family == family)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: texts that repeat stand once."""
        setups = list(dict.fromkeys((row.source, row.configuration, row.setting) for row in self.rows))
        number = {setup: at for at, setup in enumerate(setups)}
        names = [family.name for family in self.families]
        return {
            "schema": SCHEMA,
            "network": self.network,
            "families": [_values(family) for family in self.families],
            "pairs": {name: _values(pairs) for name, pairs in self.pairs.items()},
            "setups": [list(setup) for setup in setups],
            "rows": [
                [
                    row.id,
                    names.index(row.family),
                    number[row.source, row.configuration, row.setting],
                    float(f"{row.predicted_s:.5g}"),
                    round(row.error, 4),
                ]
                for row in self.rows
            ],
            "kernels": [_values(line) for line in self.kernels],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> KnownErrors:
        """Read what `to_json` gave.

        Raises
        ------
        MoecastError
            It is something else.
        """
        try:
            if value["schema"] != SCHEMA:
                raise ValueError(f"schema {value['schema']}")
            families = tuple(KnownFamily(**family) for family in value["families"])
            setups: Sequence[Sequence[str]] = value["setups"]
            rows = tuple(
                JudgedRow(
                    id=name,
                    family=families[family].name,
                    source=setups[at][0],
                    configuration=setups[at][1],
                    setting=setups[at][2],
                    predicted_s=predicted_s,
                    error=error,
                )
                for name, family, at, predicted_s, error in value["rows"]
            )
            pairs = {name: PairedErrors(**found) for name, found in value["pairs"].items()}
            kernels = tuple(KnownFamily(**line) for line in value["kernels"])
        except (KeyError, TypeError, ValueError, IndexError) as wrong:
            raise MoecastError(f"known errors of schema {SCHEMA}, not {wrong}") from None
        return cls(network=value["network"], families=families, rows=rows, pairs=pairs, kernels=kernels)


def _values(found: KnownFamily | PairedErrors) -> dict[str, Any]:
    """Numbers with as many digits as say anything; what a line does not have is left out."""
    values = ((name, getattr(found, name)) for name in found.__slots__)
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in values
        if value is not None or name not in ("low", "high")
    }


@cache
def known_errors(file: str = "known_errors.json") -> KnownErrors:
    """The known errors that ship."""
    text = resources.files("moecast.sim.accuracy").joinpath(file).read_text(encoding="utf-8")
    return KnownErrors.from_json(json.loads(text))


STEADY = "serving in steady state"
"""Decode steps and prompts of the same GPUs in turn, every batch full: what a search for a layout forecasts."""


def steady_errors() -> KnownErrors:
    """Known errors of `STEADY`, which ship apart: their rows are those of other families, asked for more."""
    return known_errors("steady_errors.json")


SERVED = {"ttft": "serving TTFT", "tpot": "serving TPOT", "throughput": "serving throughput"}
"""Families of what requests of a closed loop see, by measure: means over all of them."""

PROMPTS = "prompts inside engines, few in flight"
"""TTFT of closed loops with few in flight, less what engines and hosts add to each request: a prefill step, and the
decode steps that it waits for."""


def served_family(measure: str, *, apart: bool) -> str:
    """The family of a measure of `SERVED`; `apart`: prompts are computed on GPUs of their own."""
    return f"{SERVED[measure]}, prefill apart" if apart else SERVED[measure]


def request_errors() -> KnownErrors:
    """Known errors of the families `SERVED`: rows asked request by request."""
    return known_errors("request_errors.json")
