"""What users are promised, and how many requests keep it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.units import parse

Float = npt.NDArray[np.float64]

MEASURES = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """The most seconds of each measure, of one request; None: not promised.

    Raises
    ------
    MoecastError
        Nothing is promised, or no time.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        given = self.given
        if not given:
            raise MoecastError("promises something, as in ttft=2s,tpot=30ms", field="slo")
        for name, value in given.items():
            if not 0 < value < np.inf:
                raise MoecastError("a time of more than 0", field=f"slo {name}", value=value)

    @property
    def given(self) -> dict[str, float]:
        """What is promised, by measure, in seconds."""
        named = {name: getattr(self, f"{name}_s") for name in MEASURES}
        return {name: value for name, value in named.items() if value is not None}

    def kept_Q(self, measured_Q: Mapping[str, Float]) -> npt.NDArray[np.bool_]:
        """Which requests keep all of it."""
        kept = [measured_Q[name] <= most for name, most in self.given.items()]
        return np.asarray(np.logical_and.reduce(kept))

    def shortfalls(self, measured_Q: Mapping[str, Float]) -> dict[str, float]:
        """By measure, how many times what is promised the best request took.

        1 or less where one keeps it.

        A measure that no request has is left out.
        """
        return {
            name: float(measured_Q[name].min() / most) for name, most in self.given.items() if len(measured_Q[name])
        }


def parse_slo(text: str) -> Slo:
    """Read ``ttft=2s,tpot=30ms``.

    Raises
    ------
    MoecastError
        A measure that there is none of, or no time.
    """
    times_s: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name not in MEASURES or not equals:
            rule = f"times of {', '.join(MEASURES)}, as in ttft=2s,tpot=30ms"
            raise MoecastError(rule, field="--slo", value=part)
        times_s[f"{name}_s"] = parse(value, "time", field=f"--slo {name}")
    return Slo(**times_s)
