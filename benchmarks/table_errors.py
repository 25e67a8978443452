"""How far off forecasts by installed tables (`--kernels tables:DIR`) are on rows that were taken out of the tables.

    python benchmarks/table_errors.py --tables DIR [--gpu h200_sxm] [--engine sglang]

A line per part and element types: rows left out, then median, 90th percentile and bias (the median with its sign) of
straight lines between measured times, of tables as forecasts use them (ratios to the fitted model), and of the fitted
model alone. Sizes are left out whole: of dense products one in eight of each axis, of the others one in four.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from moecast.sim.cost.tables.installed import open_tables
from moecast.validate.fitting.table_errors import table_lines

SERVING = ("sglang", "trtllm", "vllm")


def main() -> None:
    """Print the errors of each GPU and engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--gpu")
    parser.add_argument("--engine", choices=SERVING)
    asked = parser.parse_args()
    print(f"{'':58} {'rows':>6}   {'straight lines':^23}   {'tables':^23}   {'fitted':^23}")
    for gpu in sorted(path.name for path in asked.tables.iterdir() if asked.gpu in (None, path.name)):
        for engine in SERVING if asked.engine is None else (asked.engine,):
            for line in table_lines(open_tables(str(asked.tables), gpu, engine)):
                label = f"{gpu:9} {engine:7} {line.part:22} {line.kind:18}"
                print(f"{label} {line.tables.rows:6}   {line.straight}   {line.tables}   {line.fitted}", flush=True)


if __name__ == "__main__":
    main()
