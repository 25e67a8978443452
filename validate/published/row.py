"""A published measurement: a number, its unit, where it stands, and whether parameters were fitted on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from moecast.sim.network import Rung

Use = Literal["fit", "check"]


class Question(Protocol):
    """What the simulator must be asked for the same quantity."""

    @property
    def rung(self) -> str:
        """The rung that answers it."""
        ...

    def predict(self, rung: Rung) -> float:
        """Answer, in the unit of the row."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number.

    Parameters
    ----------
    name
        What was measured, on what.
    value, unit
        The number: "us", "ms", "GB/s" or "tokens/s".
    use
        "fit": parameters may be fitted on it, and the hardware table names it where they were; "check": never.
    question
        What predicts it; None where nothing does yet.
    why_not
        Why nothing does.
    """

    name: str
    value: float
    unit: str
    use: Use
    question: Question | None = None
    why_not: str = ""

    def __post_init__(self) -> None:
        """Check that a row is either predicted or says why not."""
        if not self.value > 0:
            raise ValueError(f"{self.name}: value = {self.value} must be positive")
        if (self.question is None) != bool(self.why_not):
            raise ValueError(f"{self.name}: give either a question or why_not")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where rows were published, and under which conditions all of them were measured."""

    name: str
    where: str
    conditions: str
    rows: tuple[Row, ...]
