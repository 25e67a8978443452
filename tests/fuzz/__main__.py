"""Many inputs for every reader of files from outside: `python -m tests.fuzz`, what `make properties` ends with.

Prints a table: what became of each target's inputs, and where a failing one was kept; exits with 1 if any failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.runner import LEAST_READ, Tally, search
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="all by default")
    parser.add_argument("--inputs", type=int, default=100_000, help="in all, spread over all targets by their share")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz"), help="where failing inputs are kept")
    parser.add_argument("--exactly", action="store_true", help=argparse.SUPPRESS)  # one target, in this process
    asked = parser.parse_args()
    seed = int.from_bytes(os.urandom(4), "big") if asked.seed is None else asked.seed
    if asked.exactly:
        tally = search(TARGETS[asked.targets[0]], asked.keep, inputs=asked.inputs, seed_=seed)
        sys.stdout.write(json.dumps(dataclasses.asdict(tally) | {"rules": sorted(tally.rules)}))
        return 0
    unknown = set(asked.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    print(f"seed {seed}: python -m tests.fuzz --seed {seed} draws the same inputs")  # noqa: T201
    names = asked.targets or list(TARGETS)
    whole = sum(TARGETS[name].share for name in names)
    counts = {name: math.ceil(asked.inputs * TARGETS[name].share / whole) for name in names}
    begin = time.monotonic()
    print(_ROW.format("target", "inputs", "read", "refused", "rules", "faults", "slowest", "peak"))  # noqa: T201
    tallies = []
    with ThreadPoolExecutor(asked.jobs) as pool:
        for tally in pool.map(lambda name: _apart(name, counts[name], seed, asked.keep), names):
            tallies.append(tally)
            _show(tally)
    kinds = [(tally.target, kind, *found) for tally in tallies for kind, found in tally.failures.items()]
    for target, kind, count, path in kinds:
        print(f"{target}: {count} x {kind}\n    {path}")  # noqa: T201
    took_s = time.monotonic() - begin
    print(f"{sum(tally.inputs for tally in tallies):,} inputs in {took_s:.0f} s, {len(kinds)} kinds of fault")  # noqa: T201
    return int(bool(kinds))


def _apart(name: str, inputs: int, seed: int, keep: Path) -> Tally:
    """Run a target in a process of its own: a crash is counted, and its input lies where it was written."""
    folder = keep / name
    command = [sys.executable, "-m", "tests.fuzz", name, "--exactly", "--inputs", str(inputs), "--seed", str(seed)]
    done = subprocess.run([*command, "--keep", str(folder)], capture_output=True, text=True)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        last = next((line.strip(" |") for line in reversed(done.stderr.splitlines()) if "Error" in line), "")
        return Tally(
            target=name, inputs=inputs, failures={f"ended with {done.returncode} {last}": (1, str(folder / "in"))}
        )
    failures = {kind: (count, path) for kind, (count, path) in found["failures"].items()}
    return Tally(**found | {"rules": set(found["rules"]), "failures": failures})


_ROW = "{:<24}{:>8}{:>8}{:>8}{:>7}{:>7}{:>10}{:>10}"


def _show(tally: Tally) -> None:
    """Print a target's row."""
    if tally.inputs and tally.read < LEAST_READ * tally.inputs:
        tally.failures[f"fewer than {LEAST_READ:.0%} of the inputs are read"] = 1, ""
    faults = sum(count for count, _ in tally.failures.values())
    slowest, peak = f"{tally.slowest_s:.2f} s", f"{tally.peak_bytes / 2**20:.0f} MiB"
    counts = (tally.inputs, tally.read, tally.refused, len(tally.rules), faults)
    print(_ROW.format(tally.target, *counts, slowest, peak), flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
