"""A fit's result as it is kept: parameters, whose they are, on which rows they rest, and their errors on all others."""

from __future__ import annotations

from typing import Protocol, TypeVar

from moecast.sim.cost.entries import Entry
from moecast.validate.fitting.errors import Errors

P = TypeVar("P")


class Owner(Protocol):
    """Whose rows they are: a table of measured times."""

    @property
    def gpu(self) -> str:
        """The GPU."""
        ...

    @property
    def engine(self) -> str:
        """The engine."""
        ...

    @property
    def version(self) -> str:
        """The engine's version."""
        ...


def entry_of(
    owner: Owner,
    parameters: P,
    errors: Errors,
    *,
    kind: str,
    fitted: int,
    rows: int,
    seed: int,
    note: str = "",
    engine: str | None = None,
) -> Entry[P]:
    """The entry of a table; errors are kept to four digits.

    Parameters
    ----------
    errors
        On the rows that were not fitted.
    fitted, rows
        Rows that set the parameters, and rows in all.
    engine
        Another than the table's: of a pool of several, which has no version.
    """
    return Entry(
        gpu=owner.gpu,
        engine=engine or owner.engine,
        version=owner.version if engine is None else "",
        kind=kind,
        parameters=parameters,
        fitted=fitted,
        rows=rows,
        seed=seed,
        median=round(errors.median, 4),
        p90=round(errors.p90, 4),
        bias=round(errors.bias, 4),
        note=note,
    )
