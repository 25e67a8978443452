"""A fit of one dataclass of parameters on the drawn rows of several tables at once, and what comes of it as data.

Axes: P parameter, R row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.entries import ERRORS, Entry
from moecast.validate.fitting.draw import fit_logarithms
from moecast.validate.fitting.errors import Errors

Float = npt.NDArray[np.float64]
Parameters = TypeVar("Parameters")

FIXED = 1e-3
"""Prior spread of a parameter that stays where it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Drawn rows of one table: what they took, and what parameters say they take."""

    seconds_R: Float
    predict: Callable[[Any], Float]


def fit_pool(rows: Sequence[Rows], start: Parameters, spread: float | Mapping[str, float]) -> Parameters:
    """Fit parameters on rows of several tables; the prior is log-normal about `start`.

    `spread`: of the prior in logarithms, for all parameters or by name; one that is not named
    stays.
    """
    value: Any = start
    names = [item.name for item in fields(value)]
    measured_R = np.concatenate([some.seconds_R for some in rows]) if rows else np.empty(0)
    if not len(measured_R):
        return start

    def made(values_P: Float) -> Any:
        return type(value)(**dict(zip(names, values_P.tolist(), strict=True)))

    def predicted(values_P: Float) -> Float:
        return np.concatenate([some.predict(made(values_P)) for some in rows])

    spread_P = np.array([spread if isinstance(spread, float) else spread.get(name, FIXED) for name in names])
    start_P = np.array([getattr(value, name) for name in names])
    fitted: Parameters = made(fit_logarithms(predicted, measured_R, start_P, spread_P))
    return fitted


def entry_json(entry: Entry[Any]) -> dict[str, Any]:
    """Give parameters as plain JSON values, to four digits, and which dataclass has them."""
    value = entry.as_json()
    numbers = {name: float(f"{number:.4g}") for name, number in value["parameters"].items()}
    errors = {name: None if value[name] is None else round(value[name], 4) for name in ERRORS}
    return {**value, **errors, "form": type(entry.parameters).__name__, "parameters": numbers}


def with_errors(entry: Entry[Any], errors: Errors) -> Entry[Any]:
    """The same parameters with their errors."""
    return replace(entry, median=errors.median, p90=errors.p90, bias=errors.bias)
