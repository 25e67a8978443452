"""A published measurement: a number, its unit, where it stands, and whether parameters were fitted on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from moecast.sim.network import Rung

Use = Literal["fit", "check", "in kind"]


class Question(Protocol):
    """What the simulator must be asked for the same quantity."""

    @property
    def rung(self) -> str:
        """The rung that answers it."""
        ...

    def predict(self, rung: Rung) -> float:
        """Answer, in the unit of the row."""
        ...

    def seconds_of(self, value: float) -> float:
        """Turn a value in the unit of the row into the time it stands for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number.

    Parameters
    ----------
    name
        What was measured, on what.
    value, unit
        The number as published: "us", "ms", "GB/s", "tokens/s", or what a row that nothing predicts
        says.
    use
        "fit": parameters may be fitted on it, and the hardware table names it where they were;
        "check": never; "in kind": shown, and left out of the mean error, since what was measured is
        not known well enough.
    question
        What predicts it; None where nothing does yet.
    why_not
        Why nothing does.
    note
        What a reader must know to compare the two; empty where nothing.
    """

    name: str
    value: float
    unit: str
    use: Use
    question: Question | None = None
    why_not: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Check that a row is either predicted or says why not."""
        if not self.value > 0:
            raise ValueError(f"{self.name}: value = {self.value} must be positive")
        if (self.question is None) != bool(self.why_not):
            raise ValueError(f"{self.name}: give either a question or why_not")
        if self.use == "in kind" and not (self.note or self.why_not):
            raise ValueError(f"{self.name}: a row that is compared in kind says why")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where rows were published, and under which conditions all of them were measured."""

    name: str
    where: str
    conditions: str
    rows: tuple[Row, ...]
