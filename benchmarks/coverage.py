"""How often measured rows lie in the forecast's 80 % intervals, by rows that did not set them; writes the known errors.

    python benchmarks/coverage.py [--write] [--tables DIR] [--steady]

Without options: from the known errors that ship, in a second. `--write` asks every published row anew (some four CPU
minutes) and writes `sim/accuracy/known_errors.json`; `--tables` judges a folder of measured kernels anew (two more) and
writes their lines there. What is not asked stays as it is. `--steady` is about serving in steady state, what a search
for a layout forecasts, and `steady_errors.json`: with `--write` its rows are asked anew (some two CPU minutes).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from moecast.files import write_text
from moecast.sim.accuracy import KnownErrors, KnownFamily, known_errors, steady_errors
from moecast.validate.published.answers import families
from moecast.validate.published.door import ask_published, kernel_families
from moecast.validate.published.known import coverage, errors_of, known_line
from moecast.validate.published.steady import ask_steady

FOLDER = Path(__file__).resolve().parent.parent / "sim" / "accuracy"
NETWORK = "bound"


def main() -> None:
    """Print coverage family by family, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="ask all rows and write the known errors")
    parser.add_argument("--tables", type=Path, help="measured kernels: GPU/family/engine/version/*.parquet")
    parser.add_argument("--steady", action="store_true", help="serving in steady state")
    asked = parser.parse_args()
    if asked.steady:
        steady = ask_steadily() if asked.write else steady_errors()
        if asked.write:
            write_text(FOLDER / "steady_errors.json", dumped(steady))
        print(table(steady))
        return
    known = ask() if asked.write else known_errors()
    if asked.tables is not None:
        known = replace(known, kernels=judged_tables(asked.tables))
    if asked.write or asked.tables is not None:
        write_text(FOLDER / "known_errors.json", dumped(known))
    print(table(known))


def ask() -> KnownErrors:
    """Ask every published row."""
    found = ask_published(network=NETWORK)
    return errors_of(found.rows, found.families, network=NETWORK, kernels=known_errors().kernels)


def ask_steadily() -> KnownErrors:
    """Ask the rows of one kind of instance for their steady state."""
    rows = ask_steady(network=NETWORK)
    return errors_of(rows, families(rows), network=NETWORK)


def judged_tables(tables: Path) -> tuple[KnownFamily, ...]:
    """Judge every line of a folder of measured kernels."""
    return tuple(known_line(family.name, *line) for family, lines in kernel_families(tables) for line in lines)


def dumped(known: KnownErrors) -> str:
    """JSON with a row a line: a change of one forecast is a change of one line."""
    parts = []
    for name, value in known.to_json().items():
        if isinstance(value, list):
            lines = ",\n".join(f"  {json.dumps(item, ensure_ascii=False)}" for item in value)
            parts.append(f' "{name}": [\n{lines}\n ]' if value else f' "{name}": []')
        else:
            parts.append(f' "{name}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def table(known: KnownErrors) -> str:
    """Coverage of each family and of all rows, then of pairs."""
    lines = [
        "| family | rows | setups | sources | median | p90 | bias | without its setup | without its source | width |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    sums = {"configuration": [0, 0], "source": [0, 0]}
    for family in known.families:
        if family.median is None or family.p90 is None or family.bias is None:
            continue
        cells, width = [], ""
        for leave_out, total in sums.items():
            inside, among, ln_width = coverage(known.of(family.name), leave_out=leave_out)
            total[0] += inside
            total[1] += among
            cells.append(f"{inside / among:.0%} of {among}" if among else "no interval")
            width = width or (f"±{ln_width / 2:.0%}" if among else "")
        numbers = f"{family.rows} | {family.configurations} | {family.sources}"
        errors = f"{family.median:.1%} | {family.p90:.1%} | {family.bias:+.1%}"
        lines.append(f"| {family.name} | {numbers} | {errors} | {' | '.join(cells)} | {width} |")
    whole = " | ".join(f"**{inside / max(among, 1):.1%}** of {among}" for inside, among in sums.values())
    lines += [f"| all | {len(known.rows)} | | | | | | {whole} | |", ""]
    lines += ["| pairs that differ in | pairs | settings | 80 % of errors below | below, a setting left out |"]
    lines += ["|---|---:|---:|---|---:|"]
    for kind, pairs in known.pairs.items():
        line = f"{pairs.floor:.3f} + {pairs.slope:.3f} · abs(ln ratio)"
        lines.append(f"| {kind} | {pairs.pairs} | {pairs.settings} | {line} | {pairs.covered:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
