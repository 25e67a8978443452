"""How often measured rows lie in the forecast's 80 % intervals, by rows that did not set them; writes the known errors.

    python benchmarks/coverage.py [--write] [--tables DIR] [--steady | --requests [--only agg]]

Without options: from the known errors that ship, in a second. `--write` asks every published row anew (some four CPU
minutes) and writes `sim/accuracy/known_errors.json`; `--tables` judges a folder of measured kernels anew. `--steady` is
about serving in steady state, what a search for a layout forecasts, and `steady_errors.json`: with `--write` its rows
are asked anew (some two CPU minutes). `--requests` is about what users of a served model see, and
`request_errors.json`: with `--write` rows run request by request, for five CPU minutes those of one kind of instance
(`--only agg`), for ten those whose prompts are computed on GPUs of their own (`--only disagg`).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from moecast.files import write_text
from moecast.sim.accuracy import KnownErrors, known_errors, request_errors, steady_errors
from moecast.validate.published.answers import families
from moecast.validate.published.door import ask_published, kernel_families
from moecast.validate.published.known import coverage, errors_of
from moecast.validate.published.request_errors import ask_requests
from moecast.validate.published.steady import ask_steady

FOLDER = Path(__file__).resolve().parent.parent / "sim" / "accuracy"
NETWORK = "bound"


def main() -> None:
    """Print coverage family by family, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="ask all rows and write the known errors")
    parser.add_argument("--tables", type=Path, help="measured kernels: GPU/family/engine/version/*.parquet")
    parser.add_argument("--steady", action="store_true", help="serving in steady state")
    parser.add_argument("--requests", action="store_true", help="what requests see")
    parser.add_argument("--only", choices=("agg", "disagg"), default="", help="of requests, one mode's rows")
    asked = parser.parse_args()
    if asked.steady or asked.requests:
        show_apart(asked)
        return
    if asked.tables is not None:
        print(kernel_table(asked.tables))
        return
    known = ask() if asked.write else known_errors()
    if asked.write:
        write_text(FOLDER / "known_errors.json", dumped(known))
    print(table(known))


def show_apart(asked: argparse.Namespace) -> None:
    """What ships in files of its own, asked anew with `--write`."""
    file, read = ("steady_errors.json", steady_errors) if asked.steady else ("request_errors.json", request_errors)
    if not asked.write:
        print(table(read()))
        return
    known = ask_steadily() if asked.steady else ask_requests_of(asked.only)
    write_text(FOLDER / file, dumped(known))
    print(table(known))


def ask_requests_of(mode: str) -> KnownErrors:
    """Run rows of a mode, or all; families of the other mode stay as they are."""
    found = ask_requests(only=f"_{mode}_" if mode else "", network=NETWORK)
    new = errors_of(found, families(found), network=NETWORK)
    if not mode:
        return new
    names = {family.name for family in new.families}
    kept = tuple(family for family in request_errors().families if family.name not in names)
    rows = tuple(row for family in kept for row in request_errors().of(family.name))
    return replace(new, families=(*new.families, *kept), rows=(*new.rows, *rows))


def ask() -> KnownErrors:
    """Ask every published row."""
    found = ask_published(network=NETWORK)
    return errors_of(found.rows, families(found.rows), network=NETWORK)


def ask_steadily() -> KnownErrors:
    """Ask the rows of one kind of instance for their steady state."""
    rows = ask_steady(network=NETWORK)
    return errors_of(rows, families(rows), network=NETWORK)


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


def kernel_table(tables: Path) -> str:
    """Errors of each family of kernels, all its lines together."""
    lines = ["| family | rows | fitted | lines | median | p90 | bias |", "|---|---:|---:|---:|---:|---:|---:|"]
    for family, of in kernel_families(tables):
        counts = f"{family.asked - family.fitted:,} | {family.fitted:,} | {len(of)}"
        errors = f"{family.median or 0:.1%} | {family.p90 or 0:.1%} | {family.bias or 0:+.1%}"
        lines.append(f"| {family.name} | {counts} | {errors} |")
    return "\n".join(lines)


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
    if not known.pairs:
        return "\n".join(lines)
    lines += ["| pairs that differ in | pairs | settings | 80 % of errors below | below, a setting left out |"]
    lines += ["|---|---:|---:|---|---:|"]
    for kind, pairs in known.pairs.items():
        line = f"{pairs.floor:.3f} + {pairs.slope:.3f} · abs(ln ratio)"
        lines.append(f"| {kind} | {pairs.pairs} | {pairs.settings} | {line} | {pairs.covered:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
