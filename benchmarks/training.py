"""Measured training steps beside the forecast: every row of training.csv with a layout, and the ratios between them.

    python benchmarks/training.py [--rows FILE] [--network bound] [--only SUBSTRING] [--no-hosts] [--parts]

Rows are those that ship, or of a file in their form; `moecast validate published` asks them the same way.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moecast.sim.breakdown import breakdown
from moecast.sim.training import HostWait
from moecast.validate.published.row_files import SHIPPED, read_rows
from moecast.validate.published.training import assumed_of, measured_seconds, time_row, unasked

Row = Mapping[str, str]

LEAST_RATIO = 0.05
"""Ratios nearer to 1 than this are not judged."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One row beside its forecast, in seconds of a step."""

    row: Row
    measured_s: float
    predicted_s: float
    assumed: str
    cpu_s: float
    parts_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Relative."""
        return self.predicted_s / self.measured_s - 1


def answer(row: Row, *, network: str, host: HostWait | None = None, parts: bool = False) -> Answer:
    """Forecast one row, with the parts of its step where asked; `host` None: the fitted one."""
    began = time.process_time()
    timed = time_row(row, network=network, host=host)
    return Answer(
        row=row,
        measured_s=measured_seconds(row),
        predicted_s=timed.times.step_time_s,
        assumed=assumed_of(row),
        cpu_s=time.process_time() - began,
        parts_s=breakdown(timed.program, timed.times).step if parts else {},
    )


def pairs(answers: Sequence[Answer]) -> Iterator[tuple[str, Answer, Answer]]:
    """Rows that differ in one thing: overlap off and on, a microbatch of 1 and of 4."""
    same = (
        "source",
        "model",
        "gpu",
        "gpus",
        "precision",
        "seq",
        "gbs",
        "tp",
        "pp",
        "cp",
        "ep",
        "dispatcher",
        "balance",
    )
    for one in answers:
        for other in answers:
            if any(one.row[name] != other.row[name] for name in same):
                continue
            off, on = one.row["overlap"] == "off", "all-to-all" in other.row["overlap"]
            if off and on and one.row["mbs"] == other.row["mbs"]:
                yield "overlap on / off", one, other
            if one.row["overlap"] == other.row["overlap"] and (one.row["mbs"], other.row["mbs"]) == ("1", "4"):
                yield "microbatch 4 / 1", one, other


def median(errors: Sequence[float]) -> str:
    """The median of the sizes of errors."""
    return f"{100 * float(np.median(np.abs(errors))):.1f} %" if len(errors) else "-"


def is_even(row: Row) -> bool:
    """Whether routing was exactly even and nothing overlapped, on one node of B200."""
    return row["gpu"] == "b200" and row["balance"].startswith("exactly even") and row["overlap"] == "off"


def show(what: str, errors: Sequence[float]) -> None:
    """Print the median, the 90th percentile and the largest of some errors."""
    if errors:
        sizes = np.abs(errors)
        worst = f"p90 {np.quantile(sizes, 0.9):.1%}, largest {sizes.max():.1%}"
        print(f"{what}: {len(errors)} rows, median error {median(errors)}, {worst}")


def main() -> None:
    """Print the rows and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, default=SHIPPED / "training.csv")
    parser.add_argument("--network", default="bound")
    parser.add_argument("--only", default="")
    parser.add_argument("--no-hosts", action="store_true", help="Without launches and waits.")
    parser.add_argument("--parts", action="store_true", help="Where the forecast's time goes, exposed seconds.")
    options = parser.parse_args()
    rows = [row for row in read_rows(options.rows).rows if options.only in row["id"]]
    answers = []
    print(f"{'row':<58}{'use':<6}{'measured s':>11}{'predicted s':>12}{'error':>9}{'CPU s':>7}  assumed")
    for row in rows:
        if why := unasked(row):
            print(f"{row['id']:<58}{row['use']:<6}  {why}")
            continue
        host = HostWait() if options.no_hosts else None
        found = answer(row, network=options.network, host=host, parts=options.parts)
        answers.append(found)
        numbers = f"{found.measured_s:>11.3f}{found.predicted_s:>12.3f}{100 * found.error:>+8.1f}%{found.cpu_s:>7.1f}"
        print(f"{row['id']:<58}{row['use']:<6}{numbers}  {found.assumed}", flush=True)
        if found.parts_s:
            print("  " + ", ".join(f"{part} {seconds:.3f}" for part, seconds in found.parts_s.items()))
    for use in ("fit", "check"):
        show(use, [found.error for found in answers if found.row["use"] == use])
    even = [found for found in answers if is_even(found.row)]
    show("even, not overlapped, 8 x B200", [found.error for found in even])
    show("  of these, check", [found.error for found in even if found.row["use"] == "check"])
    for source in dict.fromkeys(found.row["source"] for found in answers):
        errors = [found.error for found in answers if found.row["source"] == source]
        print(f"{source}: {len(errors)} rows, errors from {min(errors):+.1%} to {max(errors):+.1%}")
    print(f"\n{'ratio':<20}{'of':<70}{'measured':>9}{'predicted':>10}{'error':>8}")
    errors = []
    for what, one, other in pairs(answers):
        measured, predicted = other.measured_s / one.measured_s, other.predicted_s / one.predicted_s
        judged = abs(measured - 1) > LEAST_RATIO
        errors += [predicted / measured - 1] if judged else []
        error = f"{100 * (predicted / measured - 1):>+7.1f}%" if judged else "   near 1"
        print(f"{what:<20}{other.row['id']:<70}{measured:>9.3f}{predicted:>10.3f}{error}")
    print(f"ratios that differ from 1 by more than {LEAST_RATIO:.0%}: {len(errors)}, median error {median(errors)}")


if __name__ == "__main__":
    main()
