"""What fitted constants do: errors of each family of published rows without any of them and with all.

    python benchmarks/before_after.py [--only TEXT] [--tables DIR]

Before: kernels by the roofline, exchanges by links alone. After: today's forecast. Beside the errors stands what all
forecasts of a family took, CPU seconds of this run; each way is asked with its cluster and routing built anew. All rows
take some ten CPU minutes; `--only` asks those whose id has a text in it. `--tables` judges kernels, too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from moecast.topology import Cluster, load_cluster
from moecast.validate.fitting.lines import FAMILIES
from moecast.validate.published.answers import RowAnswer
from moecast.validate.published.door import ask_published

HOLDS_ROWS = "moecast.validate.published."
"""Modules that load the clusters of rows, and keep what they have built."""


@dataclass(kw_only=True)
class Way:
    """Sizes of errors and CPU seconds, by family, of one way to ask."""

    errors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def told(self, family: str) -> str:
        """Median, p90 and seconds as cells of a table."""
        sizes = self.errors[family]
        if not sizes:
            return "- | - | -"
        return f"{np.median(sizes):.1%} | {np.quantile(sizes, 0.9):.1%} | {self.cpu_s[family]:.1f}"


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose id has this in it")
    parser.add_argument("--tables", type=Path, help="measured kernels: GPU/family/engine/version/*.parquet")
    asked = parser.parse_args()
    ask(asked.only)  # compiles what is compiled
    with links_alone():
        before = ask(asked.only)
    after = ask(asked.only)
    print("| family | rows | median before | p90 | CPU s | median after | p90 | CPU s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for family, errors in after.errors.items():
        print(f"| {family} | {len(errors)} | {before.told(family)} | {after.told(family)} |")
    if asked.tables is not None:
        print_kernels(asked.tables)


def ask(only: str) -> Way:
    """Ask rows, with nothing kept from before."""
    forget()
    found, ends_s = Way(), [time.process_time()]
    rows = ask_published(only=only, progress=lambda *_: ends_s.append(time.process_time())).rows
    for row, taken_s in zip(rows, np.diff(ends_s).tolist(), strict=True):
        note(found, row, taken_s)
    return found


def note(found: Way, row: RowAnswer, taken_s: float) -> None:
    """Add a row that judges."""
    if row.judges:
        assert row.error is not None
        found.errors[row.family].append(abs(row.error))
        found.cpu_s[row.family] += taken_s


def modules() -> Iterator[Any]:
    """Modules of published rows that are loaded."""
    yield from (module for name, module in list(sys.modules.items()) if name.startswith(HOLDS_ROWS))


def forget() -> None:
    """Empty what these modules keep."""
    for module in modules():
        for value in vars(module).values():
            if callable(clear := getattr(value, "cache_clear", None)):
                clear()


@contextmanager
def links_alone() -> Iterator[None]:
    """Load clusters without fitted kernels."""
    those = [module for module in modules() if getattr(module, "load_cluster", None) is load_cluster]
    for module in those:
        module.load_cluster = roofline_cluster
    try:
        yield
    finally:
        for module in those:
            module.load_cluster = load_cluster


def roofline_cluster(*given: Any, **named: Any) -> Cluster:
    """Load a cluster whose kernels are priced by the roofline."""
    cluster = load_cluster(*given, **named)
    return cluster.with_hardware(replace(cluster.hardware, kernels="roofline"))


def print_kernels(tables: Path) -> None:
    """Errors of each family of kernels, all its lines together."""
    print("\n| kernels | rows | median before | p90 | median after | p90 |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, lines_of in FAMILIES.items():
        lines = list(lines_of(tables))
        ways = ([line.roofline for line in lines], [line.judged for line in lines]) if lines else ()
        pooled = [np.concatenate([np.abs(errors.error_R) for errors in each]) for each in ways]
        cells = [f"{np.nanmedian(size_R):.1%} | {np.nanquantile(size_R, 0.9):.1%}" for size_R in pooled if size_R.size]
        if len(cells) == 2:
            print(f"| {name} | {pooled[1].size:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
