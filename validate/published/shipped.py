"""Families that take too long to ask each time, or whose rows are not at hand: their errors as they ship."""

from __future__ import annotations

from collections.abc import Collection

from moecast.sim.accuracy import KnownFamily, kernel_errors, request_errors, steady_errors
from moecast.validate.published.answers import FamilyErrors

Kernels = tuple[tuple[FamilyErrors, tuple[FamilyErrors, ...]], ...]


def shipped_kernels() -> Kernels:
    """Families of kernel tables with their lines, as `benchmarks/coverage.py --tables` judged them."""
    known = kernel_errors()
    return tuple(
        (
            _errors(family, family.name),
            tuple(_errors(line, line.name.partition(": ")[2]) for line in known.lines_of(family.name)),
        )
        for family in known.families
    )


def shipped_families(without: Collection[str]) -> tuple[FamilyErrors, ...]:
    """Families of serving that are asked request by request or in steady state, but for those that were asked now."""
    known = (*request_errors().families, *steady_errors().families)
    return tuple(_errors(family, family.name) for family in known if family.name not in without)


def _errors(known: KnownFamily, name: str) -> FamilyErrors:
    return FamilyErrors(
        name=name,
        asked=known.asked,
        answered=known.answered,
        fitted=known.fitted,
        median=known.median,
        p90=known.p90,
        bias=known.bias,
    )
