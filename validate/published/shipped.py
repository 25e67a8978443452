"""Families that take too long to ask each time, or whose rows are not at hand: their errors as they ship."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from moecast.sim.accuracy import KnownFamily, request_errors, steady_errors
from moecast.sim.cost.entries import NEUTRAL
from moecast.sim.cost.fitted_errors import FAMILIES, LineErrors, fitted_errors
from moecast.validate.published.answers import FamilyErrors

KERNELS = "kernels: "
"""Before the name of a family of kernels."""
Kernels = tuple[tuple[FamilyErrors, tuple[FamilyErrors, ...]], ...]


def shipped_kernels() -> Kernels:
    """Families of kernels with their lines, by the errors that stand beside fitted parameters.

    Rows of kernels do not ship, so that a family's median, p90 and bias are those of its lines in
    the middle, each line counted by its rows.
    """
    return tuple(
        (_whole(family, _own(fitted_errors(family))), tuple(_line(line) for line in fitted_errors(family)))
        for family in FAMILIES
    )


def shipped_families(without: Collection[str]) -> tuple[FamilyErrors, ...]:
    """Families of serving that are asked request by request or in steady state, but for those that were asked now."""
    known = (*request_errors().families, *steady_errors().families)
    return tuple(_known(family) for family in known if family.name not in without)


def _own(lines: Sequence[LineErrors]) -> list[LineErrors]:
    """Those of engines: the neutral one's rows are theirs again."""
    return [line for line in lines if line.engine != NEUTRAL]


def _whole(family: str, lines: Sequence[LineErrors]) -> FamilyErrors:
    rows, fitted = sum(line.rows for line in lines), sum(line.fitted for line in lines)
    middle = {name: _middle(lines, name) for name in ("median", "p90", "bias")}
    return FamilyErrors(name=f"{KERNELS}{family}", asked=rows, answered=rows, fitted=fitted, **middle)


def _middle(lines: Sequence[LineErrors], name: str) -> float:
    """The value that half of the rows are in lines of at most."""
    ordered = sorted(lines, key=lambda line: float(getattr(line, name)))
    rows_L = np.cumsum([line.rows for line in ordered])
    return float(getattr(ordered[int(np.searchsorted(rows_L, rows_L[-1] / 2))], name))


def _line(line: LineErrors) -> FamilyErrors:
    return FamilyErrors(
        name=line.name,
        asked=line.rows,
        answered=line.rows,
        fitted=line.fitted,
        median=line.median,
        p90=line.p90,
        bias=line.bias,
    )


def _known(known: KnownFamily) -> FamilyErrors:
    return FamilyErrors(
        name=known.name,
        asked=known.asked,
        answered=known.answered,
        fitted=known.fitted,
        median=known.median,
        p90=known.p90,
        bias=known.bias,
    )
